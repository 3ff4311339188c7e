"""Why an association cannot be opened or has broken, in words that say what to look at."""

from __future__ import annotations

import re
from typing import Protocol

from storescp.errors import LinkError

# PS3.8 Table 9-21: source and reason of a rejection.
_REJECTIONS = {
    (1, 1): "it gives no reason",
    (1, 2): "it does not know the application context",
    (1, 3): "it does not accept the calling AE title {calling} (--calling)",
    (1, 7): "it does not know the called AE title {called} (--called)",
    (2, 1): "it gives no reason",
    (2, 2): "it does not know the protocol version",
    (3, 1): "it is busy, full or stopping for the time being",
    (3, 2): "it has as many associations as it allows",
}
_TRANSIENT = 2
_NO_REASON = (1, 1)
# By the codes of `_core.Sender`.
_FORMS = {
    "name": "the host name {host} is not found ({said})",
    "connect.refused": "nothing listens on {link}",
    "connect.timeout": "{link} cannot be reached: no answer in {connect_seconds} s",
    "connect.other": "{link} cannot be reached: {said}",
    "tls.expected": "{link} expects TLS (--tls)",
    "aborted": "{link} aborted the association instead of accepting it ({said})",
    "request_too_long": "{link} was not asked: {said}",
}
_TLS = "TLS with {link} failed: {said}"
_NOT_DICOM = "{link} takes connections, but does not answer as a DICOM service ({said})"
# What to look at.
_HINTS = {
    "tls.unknown_issuer": "--tls-ca has the authorities that are believed",
    "tls.wrong_name": "--tls-name is the name that it should have",
    "tls.certificate_refused": "--tls-certificate is the one that is shown",
    "tls.not_tls": "without --tls it may answer",
    "tls.closed": "without --tls it may answer",
    "tls.silent": "without --tls it may answer",
}
# What a port for TLS does with a request in the clear, where it says nothing.
_MAY_EXPECT_TLS = frozenset({"closed", "silent"})


class Link(Protocol):
    """What is known of the peer."""

    @property
    def host(self) -> str:
        """Host name or address."""

    @property
    def calling(self) -> str:
        """Our AE title."""

    @property
    def called(self) -> str:
        """The AE title that the peer was called by."""

    @property
    def tls(self) -> object | None:
        """What encrypts."""

    @property
    def user(self) -> tuple[str, str | None] | None:
        """Username and passcode."""


def no_association(link: Link, error: LinkError, connect_seconds: float, wait_seconds: float) -> str:
    """Why there is no association. The times are those that the network was given."""
    said = said_of_connection(error, wait_seconds)
    if error.code == "rejected":
        return _rejection(link, error)
    form = _FORMS.get(error.code) or (_TLS if error.code.startswith("tls.") else _NOT_DICOM)
    hint = _HINTS.get(error.code)
    if link.tls is None and error.code in _MAY_EXPECT_TLS:
        hint = "it may expect TLS (--tls)"
    told = form.format(link=link, host=link.host, said=said, connect_seconds=connect_seconds)
    return f"{told}; {hint}" if hint else told


def _rejection(link: Link, error: LinkError) -> str:
    result, *cause = error.numbers
    why = _REJECTIONS.get((cause[0], cause[1]), "for a reason that PS3.8 does not know")
    why = why.format(calling=link.calling, called=link.called)
    if tuple(cause) == _NO_REASON:
        # So are users answered that are missing or wrong: there is no reason of its own for them.
        why += "; it may not accept the user" if link.user else "; it may ask for a user (--user)"
    again = "; trying again later may help" if result == _TRANSIENT else ""
    return f"{link} rejected the association ({'/'.join(map(str, error.numbers))}): {why}{again}"


def said_of_connection(error: LinkError, wait_seconds: float) -> str:
    """What the core says, without what only programmers need."""
    if error.code == "silent":
        return f"no answer in {wait_seconds} s"
    text = str(error).removeprefix("failed to lookup address information: ")
    text = re.sub(r" \(os error [0-9]+\)$", "", text)
    return f"a file cannot be read: {text}" if error.code == "file" else text
