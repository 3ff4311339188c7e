"""Advice for everything that can be refused."""

from __future__ import annotations

import pytest

from storescp import _core, advice
from storescp.settings import Settings


@pytest.mark.parametrize(("status", "comment"), _core.refusals())
def test_every_refusal_has_its_advice(status: int, comment: str) -> None:
    found = advice.of_refusal(comment, status)
    assert found is not advice._UNKNOWN
    is_plain = status == 0xC000 and "quarantine" not in comment
    assert (found is advice._CANNOT_BE_READ) == is_plain


def test_no_two_kinds_of_refusal_share_advice_by_accident() -> None:
    found = [advice.of_refusal(comment, status) for status, comment in _core.refusals() if status != 0xC000]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_nobody_is_told_to_make_a_uid_optional(keyword: str) -> None:
    text = advice.of_refusal(f"{keyword} is absent or empty", 0xA900).text()
    assert "always required" in text
    assert "required_attributes" not in text
    assert "required_attributes" in advice.of_refusal("PatientID is absent or empty", 0xA900).text()


def test_an_unknown_tenant_is_named() -> None:
    text = advice.of_refusal("tenant not authorised", 0x0124, "HOSP_X").text()
    assert "'HOSP_X'" in text
    assert "tenants.known" in text
    assert "HOSP" not in advice.of_refusal("tenant not authorised", 0x0124).text()


@pytest.mark.parametrize(
    "cause",
    [
        *("called_ae_title", "calling_ae_title", "peer_address", "association_limit", "user_identity"),
        *("draining", "application_context", "protocol_version", "max_pdu_length"),
        *("malformed_request", "request_timeout", "tls_handshake", "unreadable_certificate"),
        *("connections", "connections_per_address", "proxy_header", "outbox limit reached"),
        "storage: less free space than configured",
    ],
)
def test_every_rejection_has_its_advice(cause: str) -> None:
    knock = advice.Knock("192.0.2.1", "CT1", "SOMEBODY")
    found = advice.of_rejection(cause, knock, Settings.model_validate({}))
    assert found is not advice._UNKNOWN
    assert found.meaning.endswith(".")
    assert found.remedy[-1] in ".?"


def test_titles_and_addresses_are_named() -> None:
    knock = advice.Knock("192.0.2.1", "CT1", "SOMEBODY")
    settings = Settings.model_validate({"dicom_store_scp": {"ae_title": "ARCHIVE"}})
    text = advice.of_rejection("called_ae_title", knock, settings).text()
    assert "'SOMEBODY'" in text
    assert "ARCHIVE" in text
    assert "'CT1'" in advice.of_rejection("calling_ae_title", knock, settings).text()
    assert "192.0.2.1" in advice.of_rejection("peer_address", knock, settings).text()


def test_a_request_that_cannot_be_followed_is_told_where() -> None:
    knock = advice.Knock("192.0.2.1", "CT1", "ARCHIVE", "item 60 of 9 bytes reaches beyond the end of the request")
    text = advice.of_rejection("malformed_request", knock, Settings()).text()
    assert text.startswith("The A-ASSOCIATE-RQ cannot be followed: item 60 of 9 bytes reaches beyond the end")
    stranger = advice.of_rejection("malformed_request", advice.Knock("192.0.2.1"), Settings()).text()
    assert stranger.startswith("What came is not an A-ASSOCIATE-RQ.")


@pytest.mark.parametrize("cause", ["malformed_request", "tls_handshake"])
def test_a_proxy_header_that_nobody_expects_has_its_own_advice(cause: str) -> None:
    def text(detail: str) -> str:
        return advice.of_connection(cause, advice.Knock("192.0.2.1", detail=detail), Settings()).text()

    unexpected, second = text(_core.PROXY_HEADER_UNEXPECTED), text(_core.PROXY_HEADER_SECOND)
    assert unexpected.startswith("192.0.2.1 sends a PROXY header and is not in dicom_store_scp.proxy_protocol_from.")
    assert second.startswith("The connection begins with two PROXY headers")
    usual = advice.of_rejection(cause, advice.Knock("192.0.2.1"), Settings()).text()
    assert text("UnrecognisedPdu") == usual


@pytest.mark.parametrize("code", _core.request_oddities())
def test_each_oddity_of_a_request_has_its_words(code: str) -> None:
    found = advice.of_oddity(code, r"V1\\2")
    assert found.meaning.endswith(r": V1\\2.")
    assert found.remedy.endswith(".")
    assert advice.of_oddity(code, "").meaning.endswith(".")


def test_contexts_that_cannot_be_read_are_explained() -> None:
    assert "shares its identifier" in advice.of_context(_core.NO_SYNTAX, 3, ("1.2.840.10008.1.2",)).text()
    assert "nothing readable" in advice.of_context("1.2.840.10008.1.1", 4, (_core.NO_SYNTAX,)).text()


def test_rejected_contexts_are_explained() -> None:
    find = advice.of_context("1.2.840.10008.5.1.4.1.2.2.1", 3, ("1.2.840.10008.1.2",)).text()
    assert "Study Root" in find
    private = advice.of_context("1.2.3", 3, ("1.2.840.10008.1.2",)).text()
    assert "promiscuous" in private
    syntax = advice.of_context("1.2.840.10008.5.1.4.1.1.2", 4, ("1.2.3.4",)).text()
    assert "CT Image Storage (1.2.840.10008.5.1.4.1.1.2)" in syntax
    assert "1.2.3.4" in syntax
