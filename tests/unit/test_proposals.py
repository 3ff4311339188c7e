"""What is negotiated once for many contexts is what pynetdicom says to each of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storescp.network import negotiation
from storescp.network.contexts import VERIFICATION, Offer
from storescp.network.negotiation import Agreement, MalformedRequest, Negotiator, Rejection
from storescp.network.proposals import condense
from support import scu
from support.instances import CT

OFFER = Offer(frozenset({CT, VERIFICATION}), frozenset({scu.EXPLICIT, scu.IMPLICIT}), promiscuous=False)
MR = "1.2.840.10008.5.1.4.1.1.4"
JPEG = "1.2.840.10008.1.2.4.50"
ODD_UIDS = ["", "1.02", "1..2", "1.2.", "1.2.3\0", " 1.2.3", "x", "1." + "2" * 63, "1.2\n"]
CONTEXTS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 127).map(lambda n: 2 * n + 1), st.integers(0, 255)),
        st.one_of(st.sampled_from([CT, VERIFICATION, MR, "1.2.3"]), st.sampled_from(ODD_UIDS)),
        st.lists(st.one_of(st.sampled_from([scu.EXPLICIT, scu.IMPLICIT, JPEG]), st.sampled_from(ODD_UIDS)), max_size=3),
    ),
    max_size=12,
)
PLAIN_CONTEXTS = st.lists(
    st.tuples(
        st.integers(0, 127).map(lambda n: 2 * n + 1),
        st.sampled_from([CT, VERIFICATION, MR, "1.2.3"]),
        st.lists(st.sampled_from([scu.EXPLICIT, scu.IMPLICIT, JPEG]), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=128,
    unique_by=lambda context: context[0],
)


@pytest.fixture(autouse=True, scope="module")
def _as_in_the_service() -> Iterator[None]:
    """UIDs are not looked at for what deserves a warning, which would be an error here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
        yield


def outcome(request: bytes, offer: Offer = OFFER) -> object:
    try:
        found = Negotiator(offer, 16384).negotiate(request)
    except MalformedRequest:
        return None
    if isinstance(found, Rejection):
        return found
    answer = found.answer
    return answer.contexts, answer.rejected_contexts, answer.peer_max_pdu_length, answer.pdu_for(request), found.user


def outcome_of_each(request: bytes, offer: Offer = OFFER) -> object:
    """As pynetdicom has it that sees all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negotiation, "condense", lambda *_: None)
        return outcome(request, offer)


@given(PLAIN_CONTEXTS)
def test_plain_requests_are_condensed_and_answered_the_same(contexts: list[tuple[int, str, list[str]]]) -> None:
    request = scu.associate_rq(contexts)
    condensed = condense(request, OFFER)
    assert condensed is not None
    # Not taken, taken with one of two syntaxes, and the first of what is not offered or not looked at.
    assert len({proposal.like for proposal in condensed[1]}) <= 6
    assert outcome(request) == outcome_of_each(request)


@given(contexts=CONTEXTS, promiscuous=st.booleans())
def test_odd_requests_are_answered_the_same(contexts: list[tuple[int, str, list[str]]], promiscuous: bool) -> None:
    request, offer = scu.associate_rq(contexts), replace(OFFER, promiscuous=promiscuous)
    assert outcome(request, offer) == outcome_of_each(request, offer)


@pytest.mark.parametrize("promiscuous", [False, True])
def test_uids_with_leading_zeros_are_condensed_and_answered_the_same(promiscuous: bool) -> None:
    offer = replace(OFFER, promiscuous=promiscuous)
    syntaxes = [[f"1.2.{number:055}" for number in range(20)], ["1.02", scu.EXPLICIT], [scu.IMPLICIT, "00"]]
    contexts = [(2 * n + 1, ("1.2.03", CT, "01.2")[n % 3], syntaxes[n // 3 % 3]) for n in range(60)]
    request = scu.associate_rq(contexts)
    condensed = condense(request, offer)
    assert condensed is not None
    assert len(condensed[0]) < len(request) / 10
    assert outcome(request, offer) == outcome_of_each(request, offer)


@given(st.integers(0, 400), st.binary(max_size=8))
@example(2, struct.pack(">L", 5))
def test_patched_requests_are_answered_the_same(at: int, patch: bytes) -> None:
    whole = scu.associate_rq([(1, CT, [scu.EXPLICIT, JPEG]), (3, MR, [JPEG]), (5, VERIFICATION, [scu.EXPLICIT, JPEG])])
    request = whole[:at] + patch + whole[at + len(patch) :]
    assert outcome(request) == outcome_of_each(request)


@pytest.mark.parametrize(
    "request_pdu",
    [
        scu.associate_rq([(1, CT, [scu.EXPLICIT])])[:-1],
        scu.associate_rq([(1, CT, [scu.EXPLICIT])]) + b"\x51",
        scu.associate_rq([(1, CT, [scu.EXPLICIT])]) + scu.item(0x50, b""),
        scu.associate_rq([(1, CT, [])]),
        scu.associate_rq([(1, CT, [scu.EXPLICIT]), (1, CT, [scu.IMPLICIT])]),
        scu.associate_rq([(2, CT, [scu.EXPLICIT])]),
        scu.associate_rq([(1, CT + "\0", [scu.EXPLICIT])]),
    ],
    ids=["cut", "more", "two users", "no syntax", "repeated id", "even id", "padded"],
)
def test_what_is_odd_is_not_condensed(request_pdu: bytes) -> None:
    assert condense(request_pdu, OFFER) is None


def test_contexts_that_ask_the_same_are_one() -> None:
    contexts = [(number, CT, [scu.EXPLICIT, JPEG]) for number in range(1, 256, 2)]
    condensed = condense(scu.associate_rq(contexts), OFFER)
    assert condensed is not None
    request, proposals = condensed
    assert request == scu.associate_rq([(1, CT, [scu.EXPLICIT])])
    assert {proposal.like for proposal in proposals} == {1}
    agreement = Negotiator(OFFER, 16384).negotiate(scu.associate_rq(contexts))
    assert isinstance(agreement, Agreement)
    assert agreement.answer.contexts == dict.fromkeys(range(1, 256, 2), (CT, scu.EXPLICIT))
