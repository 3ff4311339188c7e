"""Association negotiation (PS3.8 Section 7.1, PS3.7 Annex D) with pynetdicom's PDUs and rules.

Negotiation is a pure function of the A-ASSOCIATE-RQ and the offer, so its answer is remembered, where the core finds
it: devices send the same request each time. Who may come in (admission) is decided anew for every association.

The core makes a request clean before pynetdicom decodes it: pynetdicom raises on what other receivers pass over.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from storescp import _core, memory
from storescp.errors import CoreError
from storescp.network.contexts import Offer
from storescp.network.identity import UserIdentity
from storescp.network.proposals import FIXED_BYTES, Proposal, condense, expand

APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
# A response needs room for one fragment of at least two bytes; less is no length that anyone can use.
_SMALLEST_PEER_PDU = 128
# Requests of devices are shorter: 128 contexts with four transfer syntaxes each take 16 KB.
_LARGE_BYTES = 64 << 10
# Transfer syntaxes of a rejected context that are remembered.
_NAMED_SYNTAXES = 16
_PROTOCOL_VERSION = slice(6, 8)
_CALLED = slice(10, 26)
_CALLING = slice(26, 42)
_NO_TITLES = b"ANY".ljust(16) * 2


@dataclass(frozen=True)
class Rejection:
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21): result, source, reason, and the cause in a word.

    `detail` is for the log alone: the peer is not told.
    """

    result: int
    source: int
    reason: int
    cause: str
    detail: str = ""

    def pdu(self) -> bytes:
        """The PDU."""
        primitive = A_ASSOCIATE()
        primitive.result = self.result
        primitive.result_source = self.source
        primitive.diagnostic = self.reason
        rejection = A_ASSOCIATE_RJ()
        rejection.from_primitive(primitive)
        return bytes(rejection.encode())


UNKNOWN_APPLICATION_CONTEXT = Rejection(1, 1, 2, "application_context")
UNKNOWN_PROTOCOL_VERSION = Rejection(1, 2, 2, "protocol_version")
BAD_CALLED_AE_TITLE = Rejection(1, 1, 7, "called_ae_title")
BAD_CALLING_AE_TITLE = Rejection(1, 1, 3, "calling_ae_title")
UNUSABLE_PDU_LENGTH = Rejection(1, 1, 1, "max_pdu_length")


class MalformedRequest(Exception):
    """The A-ASSOCIATE-RQ cannot be read, for the reason in its text: answered with A-ABORT."""

    # PS3.8 Table 9-26: service provider, invalid PDU parameter value.
    pdu = bytes([0x07, 0, 0, 0, 0, 4, 0, 0, 2, 6])


@dataclass(frozen=True)
class Agreement:
    """A request that negotiation accepts: the answer to it, and who sent it."""

    answer: _core.Answer
    calling_ae_title: str
    called_ae_title: str
    user: UserIdentity | None = None


def negotiate_contexts(requested: Sequence[PresentationContext], offer: Offer) -> list[PresentationContext]:
    """PS3.8 7.1.1.13: one result for each proposed context.

    pynetdicom walks the acceptor's transfer syntaxes, so each context is negotiated against those of its sender's
    that we support, in the sender's order: the sender's first choice wins and nobody decompresses for us.
    """
    results: list[PresentationContext] = []
    for context in requested:
        supported = []
        abstract_syntax = str(context.abstract_syntax)
        if offer.accepts(abstract_syntax):
            ours = PresentationContext()
            ours.abstract_syntax = UID(abstract_syntax)
            # Empty: the class is ours, none of the syntaxes is (result 4 instead of 3).
            ours._transfer_syntax = [uid for uid in context.transfer_syntax if uid in offer.transfer_syntaxes]  # noqa: SLF001
            supported.append(ours)
        results += negotiate_as_acceptor([context], supported)[0]
    return results


class Negotiator:
    """Answers A-ASSOCIATE-RQs, remembering what it answered."""

    def __init__(self, offer: Offer, max_pdu_length: int, *, answers_users: bool = False) -> None:
        self._offer = offer
        self._answers_users = answers_users
        self._max_pdu_length = max_pdu_length
        self.answers = _core.Answers()
        self._one_large = threading.Lock()

    def negotiate(self, request: bytes) -> Agreement | Rejection:
        """The answer to a request PDU.

        Raises:
            MalformedRequest: it cannot be read.
        """
        if len(request) <= _LARGE_BYTES:
            return self._negotiate(request)
        # What a megabyte of names becomes takes ten times as much. So that is there once, and is given back.
        with self._one_large:
            try:
                return self._negotiate(request)
            finally:
                memory.give_back()

    def _negotiate(self, request: bytes) -> Agreement | Rejection:
        rejection = check_fixed_fields(request)
        if rejection:
            return rejection
        titles = titles_of(request)
        answer = self.answers.find(request)
        if answer is not None:
            return Agreement(answer, *titles)
        # The titles decide nothing here and are only echoed; nobody shall stumble over odd padding.
        cleaned = clean(request)
        untitled = with_titles(cleaned.pdu, None)
        condensed, proposals = condense(untitled, self._offer) or (untitled, None)
        primitive = _decode(condensed)
        if primitive.application_context_name != APPLICATION_CONTEXT_NAME:
            return UNKNOWN_APPLICATION_CONTEXT
        peer = peer_information(primitive)
        if peer.has_unusable_length:
            return UNUSABLE_PDU_LENGTH
        answer = self._answer(primitive, proposals or _proposals_of(primitive), peer, cleaned)
        # A request with a user's passcode in it is not kept.
        if peer.user is None:
            self.answers.remember(request, answer)
        return Agreement(answer, *titles, peer.user)

    def _answer(
        self, primitive: A_ASSOCIATE, proposals: list[Proposal], peer: PeerInformation, cleaned: _core.CleanRequest
    ) -> _core.Answer:
        asked = primitive.presentation_context_definition_list
        results = negotiate_contexts(asked, self._offer)
        found = {
            int(context.context_id or 0): (int(result.result or 0), str(result.transfer_syntax[0]))
            for context, result in zip(asked, results, strict=True)
        }
        accepted, rejected = [], []
        for one in proposals:
            result, transfer_syntax = found[one.like]
            if result == 0:
                accepted.append((one.context_id, one.abstract_syntax, transfer_syntax))
            else:
                # For the log alone, and as long as the association lasts.
                rejected.append((one.abstract_syntax, result, list(one.transfer_syntaxes[:_NAMED_SYNTAXES])))
        acknowledge_user = self._answers_users and peer.wants_user_response
        pdu = self._accept_pdu(primitive, results, acknowledge_user=acknowledge_user)
        return _core.Answer(accepted, rejected, peer.max_pdu_length, expand(pdu, proposals), cleaned)

    def _accept_pdu(self, request: A_ASSOCIATE, results: list[PresentationContext], *, acknowledge_user: bool) -> bytes:
        primitive = A_ASSOCIATE()
        primitive.application_context_name = UID(APPLICATION_CONTEXT_NAME)
        primitive.calling_ae_title = request.calling_ae_title
        primitive.called_ae_title = request.called_ae_title
        primitive.result = 0
        primitive.result_source = 1
        primitive.presentation_context_definition_results_list = results
        primitive.user_information = [*our_user_information(self._max_pdu_length)]
        if acknowledge_user:
            # PS3.7 D.3.3.7.2: empty for usernames and passcodes.
            response = UserIdentityNegotiation()
            response.server_response = b""
            primitive.user_information.append(response)
        accept = A_ASSOCIATE_AC()
        accept.from_primitive(primitive)
        return bytes(accept.encode())


def our_user_information(
    max_pdu_length: int,
) -> list[MaximumLengthNotification | ImplementationClassUIDNotification | ImplementationVersionNameNotification]:
    """The user information items of an A-ASSOCIATE-AC (PS3.8 Annex D.1, PS3.7 D.3.3.2)."""
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu_length
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(_core.IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = _core.IMPLEMENTATION_VERSION_NAME
    return [length, implementation, version]


def check_fixed_fields(request: bytes) -> Rejection | None:
    """What PS3.8 9.3.2 says of the fixed fields: protocol version and titles.

    Raises:
        MalformedRequest: they are not all there.
    """
    if len(request) < FIXED_BYTES:
        raise MalformedRequest("no A-ASSOCIATE-RQ")
    if not request[_PROTOCOL_VERSION][1] & 1:
        return UNKNOWN_PROTOCOL_VERSION
    if _core.read_title(request[_CALLED]) is None:
        return BAD_CALLED_AE_TITLE
    if _core.read_title(request[_CALLING]) is None:
        return BAD_CALLING_AE_TITLE
    return None


def clean(request: bytes) -> _core.CleanRequest:
    """A request that pynetdicom can decode, and what was odd in the original.

    Raises:
        MalformedRequest: its items cannot be followed, or it proposes no presentation context.
    """
    try:
        cleaned = _core.clean_request(request)
    except CoreError as error:
        raise MalformedRequest(str(error)) from None
    if not cleaned.has_proposals:
        raise MalformedRequest("there is no presentation context in it")
    return cleaned


def titles_of(request: bytes) -> tuple[str, str]:
    """The calling and called AE title of an A-ASSOCIATE-RQ; one that is rejected is escaped."""
    calling, called = (
        _core.read_title(field) or field.strip(b" \0").decode("ascii", "backslashreplace")
        for field in (request[_CALLING], request[_CALLED])
    )
    return calling, called


def with_titles(pdu: bytes, titles: bytes | None) -> bytes:
    """An A-ASSOCIATE-RQ or -AC with both title fields of another one, or with titles that anybody takes."""
    return pdu[: _CALLED.start] + (_NO_TITLES if titles is None else titles) + pdu[_CALLING.stop :]


def title_fields(request: bytes) -> bytes:
    """Both title fields as they came: PS3.8 9.3.3 has them echoed."""
    return request[_CALLED.start : _CALLING.stop]


def _decode(request: bytes) -> A_ASSOCIATE:
    """A clean request, decoded."""
    pdu = A_ASSOCIATE_RQ()
    try:
        pdu.decode(request)
        return pdu.to_primitive()
    except Exception as error:
        raise MalformedRequest(str(error)) from error


def _proposals_of(primitive: A_ASSOCIATE) -> list[Proposal]:
    """Each is like itself."""
    proposals = []
    for context in primitive.presentation_context_definition_list:
        context_id = int(context.context_id or 0)
        syntaxes = tuple(str(uid) for uid in context.transfer_syntax)
        proposals.append(Proposal(context_id, str(context.abstract_syntax), syntaxes, context_id))
    return proposals


@dataclass(frozen=True)
class PeerInformation:
    """What a requestor says of itself; a maximum PDU length of 0 is none."""

    max_pdu_length: int
    user: UserIdentity | None
    wants_user_response: bool

    @property
    def has_unusable_length(self) -> bool:
        """Whether no response fits its PDUs."""
        return 0 < self.max_pdu_length < _SMALLEST_PEER_PDU


def peer_information(primitive: A_ASSOCIATE) -> PeerInformation:
    """What the user information of a request says."""
    length, user, wants_response = 0, None, False
    for item in primitive.user_information:
        if isinstance(item, MaximumLengthNotification):
            length = int(item.maximum_length_received)
        elif isinstance(item, UserIdentityNegotiation):
            user = UserIdentity(
                int(item.user_identity_type or 0), item.primary_field or b"", item.secondary_field or b""
            )
            wants_response = bool(item.positive_response_requested)
    return PeerInformation(length, user, wants_response)
