"""Contexts, answers and admission, without a socket."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_RQ

from storescp import _core
from storescp.network.admission import PEER_NOT_ALLOWED, Admission, Tenancy, congestion
from storescp.network.contexts import (
    NATIVE_TRANSFER_SYNTAXES,
    VERIFICATION,
    Offer,
    known_transfer_syntaxes,
    storage_sop_classes,
)
from storescp.network.identity import Peer, SubjectPattern, UserIdentity, Users, entry
from storescp.network.negotiation import Agreement, MalformedRequest, Negotiator, Rejection
from storescp.settings import Settings
from support import odd_requests, scu
from support.instances import CT

# The 34 storage classes of wado-storescp.
WADO_STORESCP = """
1.2 1.2.1 1.9 1.8 1.7 1.6 1.5 1.4 1.4.1 1.4.2 1.4.3 1.3 1.1 1.1.1 1.1.1.1 1.104.1 1.104.2 1.104.3 1.11.1 1.128
1.13.1.3 1.13.1.4 1.13.1.5 1.130 1.481.1 1.20 1.3.1 1.7.1 1.7.2 1.7.3 1.7.4 1.88.11 1.88.22 1.88.33
"""


@pytest.fixture(scope="module")
def offer() -> Offer:
    return Offer.from_settings(Settings())


def test_all_storage_classes_are_taken_and_nothing_else(offer: Offer) -> None:
    for suffix in WADO_STORESCP.split():
        assert offer.accepts(f"1.2.840.10008.5.1.4.1.{suffix}"), suffix
    for other in ("1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.5.1.4.38.1", "1.2.840.10008.5.1.1.27",
                  "1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.1.200.1", "1.2.3"):  # fmt: skip
        assert not offer.accepts(other), other
    assert offer.accepts(VERIFICATION)
    assert len(storage_sop_classes()) >= 190


def test_all_transfer_syntaxes_of_storage_are_taken() -> None:
    known = known_transfer_syntaxes()
    for suffix in ("", ".1", ".1.98", ".1.99", ".2", ".4.50", ".4.66", ".4.94", ".4.95", ".4.100.1", ".4.107", ".4.110",
                   ".4.111", ".4.112", ".4.201", ".4.202", ".4.203", ".4.204", ".4.205", ".5", ".8.1"):  # fmt: skip
        assert f"1.2.840.10008.1.2{suffix}" in known, suffix
    assert not [
        uid for uid in known if uid.startswith(("1.2.840.10008.1.2.6.", "1.2.840.10008.1.2.7.", "1.2.840.10008.1.20"))
    ]


def test_options_narrow_and_widen() -> None:
    native = Offer.from_settings(Settings.model_validate({"dicom_store_scp": {"uncompressed_only": True}}))
    assert native.transfer_syntaxes == NATIVE_TRANSFER_SYNTAXES
    listed = Settings.model_validate({"transcoding": {"viewer_transfer_syntaxes": ["1.2.3.4.5"]}})
    assert "1.2.3.4.5" in Offer.from_settings(listed).transfer_syntaxes
    promiscuous = Offer.from_settings(Settings.model_validate({"dicom_store_scp": {"promiscuous": True}}))
    assert promiscuous.accepts("1.2.276.0.19.55.1")
    assert not promiscuous.accepts("1.2.840.10008.5.1.4.1.2.1.1")


def negotiate(offer: Offer, **options: object) -> Agreement | Rejection:
    request = scu.associate_rq([(1, CT, [scu.EXPLICIT])], **options)  # type: ignore[arg-type]
    return Negotiator(offer, 16384).negotiate(request)


def test_answers_and_rejections(offer: Offer) -> None:
    agreement = negotiate(offer, calling=b"CT1 ", called=b"ME\0\0", max_pdu=65536)
    assert isinstance(agreement, Agreement)
    assert (agreement.calling_ae_title, agreement.called_ae_title) == ("CT1", "ME")
    assert agreement.answer.peer_max_pdu_length == 65536
    assert agreement.answer.contexts == {1: (CT, scu.EXPLICIT)}
    for options, code in [
        ({"version": 2}, (1, 2, 2)),
        ({"application_context": b"1.2.3"}, (1, 1, 2)),
        ({"called": b" "}, (1, 1, 7)),
        ({"calling": b"A\\B"}, (1, 1, 3)),
        ({"max_pdu": 1}, (1, 1, 1)),
        ({"max_pdu": 7}, (1, 1, 1)),
    ]:
        rejection = negotiate(offer, **options)
        assert isinstance(rejection, Rejection)
        assert (rejection.result, rejection.source, rejection.reason) == code
        assert rejection.pdu() == bytes([3, 0, 0, 0, 0, 4, 0, *code])


def test_the_same_request_gets_the_same_answer_again(offer: Offer) -> None:
    negotiator = Negotiator(offer, 16384)
    one, other = (
        scu.associate_rq([(1, CT, [scu.EXPLICIT])], calling=title, called=b"ME") for title in (b"CT1", b"MR2")
    )
    first, second, third = (negotiator.negotiate(request) for request in (one, other, one))
    assert isinstance(first, Agreement)
    assert isinstance(second, Agreement)
    assert isinstance(third, Agreement)
    assert (first.calling_ae_title, second.calling_ae_title, second.called_ae_title) == ("CT1", "MR2", "ME")
    pdu, again = first.answer.pdu_for(one), third.answer.pdu_for(one)
    assert pdu == again
    assert pdu[10:42] == one[10:42]
    echoed = second.answer.pdu_for(other)
    assert echoed[10:42] == other[10:42]
    assert echoed[42:] == pdu[42:]
    assert negotiator.answers.find(other) is not None
    assert negotiator.answers.find(scu.associate_rq([(1, CT, [scu.IMPLICIT])])) is None


def test_a_request_without_contexts_is_malformed(offer: Offer) -> None:
    with pytest.raises(MalformedRequest, match="no presentation context"):
        Negotiator(offer, 16384).negotiate(scu.associate_rq([]))


@pytest.mark.parametrize(
    ("contexts", "code", "rejected"),
    [
        (
            [(1, CT, [scu.EXPLICIT]), (1, CT, [scu.IMPLICIT])],
            "repeated_context_id",
            [(_core.NO_SYNTAX, 3, [scu.EXPLICIT])],
        ),
        ([(2, CT, [scu.EXPLICIT])], "context_id", []),
        ([(1, CT, [])], "transfer_syntax", [(CT, 4, [_core.NO_SYNTAX])]),
        ([(1, "", [scu.EXPLICIT])], "abstract_syntax", [(_core.NO_SYNTAX, 3, [scu.EXPLICIT])]),
    ],
    ids=["repeated id", "even id", "no transfer syntax", "no abstract syntax"],
)
def test_contexts_that_break_the_standard_are_not_accepted(
    offer: Offer, contexts: list[tuple[int, str, list[str]]], code: str, rejected: list[tuple[str, int, list[str]]]
) -> None:
    agreement = Negotiator(offer, 16384).negotiate(scu.associate_rq(contexts))
    assert isinstance(agreement, Agreement)
    assert agreement.answer.contexts == {}
    assert agreement.answer.rejected_contexts == rejected
    assert {found for found, *_ in agreement.answer.oddities} == {code}


def test_nothing_unreadable_is_accepted_where_private_classes_are() -> None:
    promiscuous = Offer.from_settings(Settings.model_validate({"dicom_store_scp": {"promiscuous": True}}))
    assert not promiscuous.accepts(_core.NO_SYNTAX)
    assert _core.NO_SYNTAX not in promiscuous.transfer_syntaxes


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("one", odd_requests.taken(), ids=str)
def test_pynetdicom_decodes_what_was_cleaned(one: odd_requests.OddRequest) -> None:
    cleaned = _core.clean_request(one.pdu)
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(cleaned.pdu)
    asked = [context.context_id for context in pdu.to_primitive().presentation_context_definition_list]
    assert asked == list(one.results)
    again = _core.clean_request(cleaned.pdu)
    assert (again.pdu, again.oddities) == (cleaned.pdu, [])


def test_all_128_contexts_and_a_long_user_identity(offer: Offer) -> None:
    identity = scu.item(0x58, struct.pack(">BBH", 2, 0, 60000) + b"u" * 60000 + struct.pack(">H", 0))
    contexts = [(number, CT, [scu.EXPLICIT]) for number in range(1, 256, 2)]
    answer = Negotiator(offer, 16384).negotiate(scu.associate_rq(contexts, extra_items=identity))
    assert isinstance(answer, Agreement)
    assert len(answer.answer.contexts) == 128


@given(st.binary(max_size=400), st.integers(0, 180), st.binary(max_size=8))
def test_any_bytes_are_answered_or_malformed(junk: bytes, at: int, patch: bytes) -> None:
    offer = Offer(frozenset({CT}), frozenset({scu.EXPLICIT}), promiscuous=False)
    valid = scu.associate_rq([(1, CT, [scu.EXPLICIT])])
    for request in (junk, valid[:at] + patch + valid[at + len(patch) :]):
        try:
            answer = Negotiator(offer, 16384).negotiate(request)
        except MalformedRequest:
            continue
        assert isinstance(answer, Agreement | Rejection)


def test_tenants_first_match_wins() -> None:
    settings = Settings.model_validate(
        {
            "tenants": {
                "default": "rest",
                "rules": [
                    {"tenant_id": "a", "called_ae": "A", "source": "10.0.0.0/8"},
                    {"tenant_id": "b", "called_ae": "A"},
                    {"tenant_id": "c", "source": "2001:db8::/32"},
                ],
            }
        }
    )
    admission = Admission(settings, lambda: None)
    assert admission.tenancy("A", "X", Peer("10.1.2.3", 104)) == Tenancy("a", by_rule=True)
    assert admission.tenancy("A", "X", Peer("192.168.0.1", 104)) == Tenancy("b", by_rule=True)
    assert admission.tenancy("Z", "X", Peer("2001:db8::1", 104)) == Tenancy("c", by_rule=True)
    assert admission.tenancy("Z", "X", Peer("10.1.2.3", 104)) == Tenancy("rest", by_rule=False)


def test_places_are_counted_and_given_back() -> None:
    settings = Settings.model_validate(
        {"dicom_store_scp": {"max_associations": 2}, "limits": {"max_associations_per_calling_ae": 1}}
    )
    admission = Admission(settings, lambda: None)
    first, second = (enter(admission, "127.0.0.1") for _ in range(2))
    refused = admission.enter("127.0.0.1")
    assert isinstance(refused, Rejection)
    assert (refused.result, refused.source, refused.reason) == (2, 3, 2)
    first.leave()
    first.leave()
    third = enter(admission, "127.0.0.1")
    assert isinstance(admission.enter("127.0.0.1"), Rejection), "a place comes back once"
    assert admission.enter_calling(second, "A") is None
    assert admission.enter_calling(third, "A") is not None
    second.leave()
    assert admission.enter_calling(third, "A") is None
    assert admission.counts() == (1, 2, {})


def enter(admission: Admission, address: str) -> _core.Place:
    place = admission.enter(address)
    assert not isinstance(place, Rejection)
    return place


def test_one_address_has_its_share_of_the_places() -> None:
    admission = Admission(Settings.model_validate({"limits": {"max_associations_per_address": 1}}), lambda: None)
    place = enter(admission, "10.0.0.1")
    refused = admission.enter("10.0.0.1")
    assert isinstance(refused, Rejection)
    assert refused.cause == "association_limit"
    assert enter(admission, "10.0.0.2")
    place.leave()
    assert enter(admission, "10.0.0.1")


def test_what_is_no_rule_is_congestion() -> None:
    settings = Settings.model_validate({"dicom_store_scp": {"allowed_peers": ["10.0.0.0/8", "fe80::/64"]}})
    reasons = [None, "the storage is broken"]
    admission = Admission(settings, lambda: reasons[-1])
    assert admission.enter("192.0.2.1") == PEER_NOT_ALLOWED
    assert admission.enter("10.0.0.1") == congestion("the storage is broken")
    reasons.append(None)
    assert enter(admission, "fe80::1%eth0")
    admission.close("draining")
    assert admission.enter("10.0.0.1") == congestion("draining")
    admission.close(None)
    assert enter(admission, "10.0.0.1")


def test_subjects_are_matched_by_attribute() -> None:
    subject = x509.Name.from_rfc4514_string("CN=ct1.hospital-a,OU=Radiology,O=Hospital A")
    for text in ("CN=ct1.hospital-a", "O=Hospital A,CN=ct1.hospital-a", "OU=Radiology"):
        assert SubjectPattern.parse(text).matches(subject)
    for text in ("CN=ct1", "CN=ct1.hospital-a.evil", "O=ct1.hospital-a", "CN=ct1.hospital-a,O=Hospital B"):
        assert not SubjectPattern.parse(text).matches(subject)
    assert not SubjectPattern.parse("CN=ct1").matches(None)
    for text in ("", "no name", "CN"):
        with pytest.raises(ValueError, match="attributes"):
            SubjectPattern.parse(text)


def test_users_are_known_by_their_passcode(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("# devices\n\n" + entry("ct1:a", "p:w") + "\n")
    users = Users.load(file)
    assert users.knows(UserIdentity(2, b"ct1:a", b"p:w"))
    for identity in (None, UserIdentity(1, b"ct1:a", b""), UserIdentity(2, b"ct1:a", b""), UserIdentity(2, b"x", b""),
                     UserIdentity(3, b"ct1:a", b"p:w"), UserIdentity(2, b"\xff", b"p:w")):  # fmt: skip
        assert not users.knows(identity)
    assert "p:w" not in file.read_text() + repr(UserIdentity(2, b"ct1:a", b"p:w"))
    file.write_text("ct1:secret\n")
    with pytest.raises(ValueError, match="line 1"):
        Users.load(file)
    with pytest.raises(ValueError, match="username"):
        entry("#x", "y")
