"""Another user of this machine, who may do less than root."""

from __future__ import annotations

import os

import pytest

NOBODY = 65534
# The interpreter may lie where that user cannot look, so what is needed is loaded before the user changes.
BECOME_NOBODY = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"


def require_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
