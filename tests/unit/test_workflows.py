"""The workflows of GitHub: what they run, and with which rights."""

from __future__ import annotations

import re

from support.deployment import PROJECT, run, tool


def test_workflows_follow_their_schema_and_ask_for_no_more_than_they_need() -> None:
    workflows = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
    assert len(workflows) >= 2
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *workflows)
    run(tool("zizmor"), "--offline", "--no-progress", "--persona", "regular", *workflows)
    for workflow in workflows:
        for action in re.findall(r"uses: (\S+)", workflow.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
