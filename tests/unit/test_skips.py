"""What the end of a run says of tests that were skipped."""

from __future__ import annotations

import pytest

from support import skips
from support.proofs import ELSEWHERE, claims_of


def skipped(node_id: str, reason: str, *claims: str) -> pytest.TestReport:
    file = node_id.partition("::")[0]
    report = pytest.TestReport(node_id, (file, 1, ""), {}, "skipped", (file, 1, f"Skipped: {reason}"), "call")
    report.user_properties += [("claim", claim) for claim in claims]
    return report


def test_one_line_for_what_is_unproven_with_its_reasons() -> None:
    reports = [
        skipped("tests/kafka/test_soak.py::test_a", "java is not installed"),
        skipped("tests/kafka/test_soak.py::test_b[1]", "java is not installed"),
        skipped("tests/unit/test_deploy.py::test_chart", "needs helm"),
    ]
    assert list(skips.summary(reports)) == [
        "not proven: records through a real broker: java is not installed (2)",
    ]


def test_a_claim_whose_proof_was_skipped_is_not_proven_wherever_the_proof_is() -> None:
    here = skipped("tests/conformance/test_statement.py::test_echo[rust]", "needs a reason", "echo")
    elsewhere = skipped("tests/crash/test_order.py::test_success_follows_durability", "strace is not installed")
    whole_file = pytest.CollectReport("tests/hostile/test_audit.py", "skipped", ("", 1, "Skipped: no TLS"), [])
    [first, *_] = skips.summary([here, elsewhere, whole_file])
    assert first == "not proven: claims of the conformance statement: audit, echo, success-is-durable"


def test_each_proof_elsewhere_is_known_by_its_id_and_no_other_test_is() -> None:
    for claim, proofs in ELSEWHERE.items():
        for proof in proofs:
            assert claim in claims_of(f"tests/{proof}")
            assert claim in claims_of(f"tests/{proof}[rust-1]")
    assert claims_of("tests/crash/test_order.py::test_success_follows") == set()
