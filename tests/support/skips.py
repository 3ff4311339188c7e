"""Tests that are skipped: what that leaves unproven, and where it is a failure.

With `STORESCP_REQUIRE_ALL=1` a skip is a failure, unless its test is in `ALLOWED`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from support.proofs import claims_of

_ARE_REQUIRED = os.environ.get("STORESCP_REQUIRE_ALL") == "1"
# Tests that may be skipped everywhere, by a part of their id, and why.
ALLOWED: tuple[tuple[str, str], ...] = (
    ("conformance/test_pynetdicom_cases.py", "cases of pynetdicom that do not apply to this service"),
    ("unit/test_chart.py", "the chart, where helm cannot be installed"),
    ("unit/test_deploy.py", "the chart, where helm cannot be installed"),
)
# Reasons that no package removes, by how they begin; what they leave unproven is told all the same.
NOT_OURS: tuple[tuple[str, str], ...] = (
    ("the folder of curated files", "the files are not part of the project"),
    ("this machine ", "its kernel or its rights: mounts, FUSE, another user"),
    ("only root may", "its user: mounts"),
    ("needs root", "its user: other users"),
    ("strace cannot attach here", "its kernel or its rights: tracing"),
    ("needs Linux", "its kernel is too old"),
)
# What a folder proves, for the line at the end.
PROVES = {
    "ceiling": "hard limits of time and memory",
    "conformance": "real senders, files and claims of the conformance statement",
    "crash": "nothing is lost by faults",
    "docs": "commands of the documentation",
    "hostile": "peers that mean harm",
    "integration": "the service as a process",
    "kafka": "records through a real broker",
    "unit": "parts by themselves",
}


def is_allowed(node_id: str) -> bool:
    return any(part in node_id for part, _ in ALLOWED)


def is_ours(reason: str) -> bool:
    return not any(reason.startswith(beginning) for beginning, _ in NOT_OURS)


def refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Makes a failure of a skip that is not allowed, where all tests are required."""
    if not report.skipped or hasattr(report, "wasxfail") or not _ARE_REQUIRED:
        return
    if is_allowed(report.nodeid) or not is_ours(reason_of(report)):
        return
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped ({reason_of(report)}), and STORESCP_REQUIRE_ALL=1"


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")


def summary(reports: list[pytest.TestReport | pytest.CollectReport]) -> Iterator[str]:
    """A line for what is unproven, with the reasons; nothing where only such tests were skipped as may be."""
    unproven: dict[str, Counter[str]] = {}
    for report in reports:
        if not is_allowed(report.nodeid):
            found = re.search(r"(?:^|/)tests/(\w+)/", report.nodeid)
            what = PROVES.get(found[1], found[1]) if found else report.nodeid
            unproven.setdefault(what, Counter())[reason_of(report)] += 1
    marked = {str(key) for report in reports for name, key in getattr(report, "user_properties", ()) if name == "claim"}
    claims = marked.union(*(claims_of(report.nodeid) for report in reports))
    if claims:
        yield f"not proven: claims of the conformance statement: {', '.join(sorted(claims))}"
    for what, reasons in sorted(unproven.items()):
        told = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        yield f"not proven: {what}: {told}"
