"""Tests that prove claims of the conformance statement, beside those marked `proves` in its own tests."""

from __future__ import annotations

# Proofs where the subject is tested in depth; of some claims the whole, of others a part.
ELSEWHERE: dict[str, list[str]] = {
    "success-is-durable": ["crash/test_order.py::test_success_follows_durability"],
    "echo": ["crash/test_disk.py::test_a_full_disk_is_transient"],
    "tls": [
        "hostile/test_tls.py::test_openssl_connects_and_old_protocols_and_ciphers_do_not",
        "hostile/test_tls.py::test_every_cipher_suite_of_the_statement_is_taken",
        "hostile/test_tls.py::test_no_session_is_resumed",
    ],
    "client-certificates": [
        "hostile/test_tls.py::test_certificates_that_prove_nothing_are_refused",
        "hostile/test_tls.py::test_tenants_and_titles_by_certificate",
    ],
    "user-identity": ["hostile/test_tls.py::test_users_need_their_passcode_and_tls"],
    "rejections": [
        "hostile/test_tls.py::test_users_need_their_passcode_and_tls",
        "kafka/test_faults.py::test_beyond_the_limit_new_work_is_refused_as_transient_until_there_is_room",
    ],
    "odd-requests": ["hostile/test_requests.py::test_odd_requests_are_answered_and_told"],
    "audit": [
        "hostile/test_audit.py::test_messages_go_to_syslog_over_tcp_and_tls",
        "hostile/test_audit.py::test_messages_go_to_a_file",
    ],
    "damaged-data-sets": [
        "integration/test_damaged.py::test_each_kind_of_damage_is_kept_as_received_with_its_note",
        "integration/test_damaged.py::test_it_is_refused_unless_configured",
        "integration/test_damaged.py::test_the_bound_holds_also_after_a_restart_and_operators_make_room",
    ],
    "private-attributes": ["integration/test_storage.py::test_tenant_of_the_private_element"],
}


def claims_of(node_id: str) -> set[str]:
    """The claims that a test proves a part of, by its id; of a whole file by the id of that."""
    name = node_id.partition("[")[0]
    return {
        claim
        for claim, proofs in ELSEWHERE.items()
        if any(name.endswith((f"tests/{proof}", f"tests/{proof.partition('::')[0]}")) for proof in proofs)
    }
