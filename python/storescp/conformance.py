"""The DICOM Conformance Statement, written from what is running: the outline is that of PS3.2 Annex A.

Each claim has a key. The tests prove every claim under its key, and fail where one has no proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storescp import _core, advice
from storescp.names import name_of
from storescp.network import negotiation
from storescp.network.admission import LOCAL_LIMIT, PEER_NOT_ALLOWED, USER_NOT_KNOWN, congestion
from storescp.network.contexts import Offer, storage_class_name
from storescp.settings import Settings

# PS3.4 Table B.2-1, PS3.7 Annex C.
_STATUS_MEANINGS = {
    0x0000: "Success",
    0xA700: "Refused: Out of Resources",
    0xA900: "Error: Data Set Does Not Match SOP Class",
    0xB007: "Warning: Data Set Does Not Match SOP Class",
    0xC000: "Error: Cannot Understand",
    0x0110: "Failure: Processing failure",
    0x0117: "Failure: Invalid SOP Instance",
    0x0122: "Failure: SOP Class not supported",
    0x0124: "Failure: Not authorized",
    0x0211: "Failure: Unrecognized operation",
    0x0212: "Failure: Mistyped argument",
}


class Statement:
    """The text, and the keys of its claims in the order of the text."""

    def __init__(self, settings: Settings) -> None:
        self.claims: list[str] = []
        self._settings = settings
        self._offer = Offer.from_settings(settings)
        self._lines: list[str] = []
        self._overview()
        self._introduction()
        self._model()
        self._application_entity()
        self._acceptance()
        self._storage()
        self._interfaces()
        self._character_sets()
        self._security()
        self._annexes()

    @property
    def markdown(self) -> str:
        """The whole statement."""
        return "\n".join(self._lines) + "\n"

    def _heading(self, level: int, text: str) -> None:
        self._lines += ["#" * level + " " + text, ""]

    def _text(self, text: str) -> None:
        self._lines += [text, ""]

    def _claim(self, key: str, text: str) -> None:
        self.claims.append(key)
        self._lines += [f"- {text} *({key})*"]

    def _end_of_list(self) -> None:
        self._lines.append("")

    def _table(self, key: str | None, caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        if key is None:
            self._text(caption)
        else:
            self.claims.append(key)
            self._text(f"{caption} *({key})*")
        self._lines.append("| " + " | ".join(head) + " |")
        self._lines.append("|" + "---|" * len(head))
        self._lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
        self._lines.append("")

    def _overview(self) -> None:
        storage = len(self._offer.storage_sop_classes)
        self._heading(1, f"DICOM Conformance Statement of storescp {_core.__version__}")
        self._text(
            "Written by `storescpd conformance` from the tables of the program and the configuration that it was "
            "given. "
            "The key behind each statement is that of its proof among the tests of the project."
        )
        self._heading(2, "1 Conformance statement overview")
        self._text(
            "storescp receives composite instances over the DICOM network, stores each durably as a file, and "
            "publishes a "
            "record of it. It is no archive to be queried: it has no Query/Retrieve, Storage Commitment or Worklist."
        )
        self._table(
            None,
            "Network services:",
            ("service", "User (SCU)", "Provider (SCP)"),
            (("Storage", "no", f"yes, {storage} SOP classes"), ("Verification", "no", "yes")),
        )
        self._text("Media services: none.")

    def _introduction(self) -> None:
        self._heading(2, "3 Introduction")
        self._text(
            "For those who connect devices to it. That two products conform does not mean that they work "
            "together; test it. "
            "Terms and abbreviations are those of PS3.1 to PS3.8. References: DICOM PS3 (NEMA), RFC 5246, RFC "
            "8446, RFC 5424."
        )

    def _model(self) -> None:
        self._heading(2, "4 Networking")
        self._heading(3, "4.1 Implementation model")
        self._text(
            "One application entity, STORE-SCP, waits for associations. For each C-STORE it checks the data set "
            "against the "
            "command, finds the tenant, transcodes where the configuration says so, writes the file and the "
            "record, and "
            "answers. Records are published to two topics afterwards, whatever becomes of the association."
        )
        durability = self._settings.storage.durability
        self._claim(
            "success-is-durable",
            "0000 (Success) is answered only after the file, its name and its record are on stable storage, where "
            f"`storage.durability` is `full` (here: `{durability}`).",
        )
        self._claim(
            "failure-leaves-nothing", "An instance that is answered with a failure leaves no file and no record."
        )
        self._end_of_list()

    def _application_entity(self) -> None:
        scp = self._settings.dicom_store_scp
        limits = self._settings.limits
        self._heading(3, "4.2 AE specification: STORE-SCP")
        self._heading(4, "4.2.1 SOP classes")
        rows = sorted((storage_class_name(uid), uid) for uid in self._offer.storage_sop_classes)
        rows.append(("Verification SOP Class", "1.2.840.10008.1.1"))
        self._table("sop-classes", "Accepted as SCP:", ("SOP class", "UID"), rows)
        self._heading(4, "4.2.2 Association policies")
        self._claim(
            "application-context",
            f"The application context name is {negotiation.APPLICATION_CONTEXT_NAME}; others are rejected.",
        )
        self._claim("no-initiation", "It never initiates an association.")
        self._claim(
            "max-pdu-length",
            f"The maximum PDU length announced is {scp.max_pdu_length} (4096 to 131072 can be configured). Longer "
            "P-DATA-TF "
            f"PDUs are {'answered with A-ABORT' if scp.strict else f'taken up to {limits.max_pdu_tolerated} bytes'}.",
        )
        self._claim("peer-max-pdu-length", "Responses are fragmented to the peer's maximum PDU length.")
        self._claim(
            "association-limit",
            f"At most {scp.max_associations} associations at a time; further ones are rejected as transient.",
        )
        self._claim(
            "no-asynchronous-operations", "Asynchronous operations are not negotiated: one operation at a time."
        )
        self._claim(
            "implementation",
            f"Implementation Class UID {_core.IMPLEMENTATION_CLASS_UID}, Implementation Version Name "
            f"{_core.IMPLEMENTATION_VERSION_NAME}.",
        )
        self._claim(
            "no-extended-negotiation",
            "SCP/SCU role selection, SOP class extended and common extended negotiation are not answered: the "
            "defaults apply.",
        )
        self._end_of_list()

    def _acceptance(self) -> None:
        self._heading(4, "4.2.3 Association acceptance policy")
        scp, limits, transcoding = self._settings.dicom_store_scp, self._settings.limits, self._settings.transcoding
        self._text("Each SOP class of 4.2.1 is accepted as SCP with each of these transfer syntaxes:")
        viewers = set(transcoding.viewer_transfer_syntaxes)
        rows = []
        for uid in sorted(self._offer.transfer_syntaxes):
            status, target = _core.transcode_plan(uid, True, viewers, transcoding.target)
            stored = "as received" if status == "NoNeedTransfer" or not target else f"as {name_of(target)} {target}"
            rows.append((name_of(uid) or uid, uid, stored))
        self._table("transfer-syntaxes", "Transfer syntaxes:", ("transfer syntax", "UID", "images are stored"), rows)
        self._claim(
            "first-choice", "Of the transfer syntaxes of a context the sender's first that is supported is accepted."
        )
        self._claim(
            "unknown-classes",
            "Contexts of other SOP classes are rejected with result 3 (abstract syntax not supported)"
            + (
                ", but those that no dictionary knows are accepted."
                if scp.promiscuous
                else "; `promiscuous` accepts those that no dictionary knows."
            ),
        )
        self._claim(
            "unknown-transfer-syntaxes",
            "Contexts with none of the transfer syntaxes are rejected with result 4 (transfer syntaxes not supported).",
        )
        self._end_of_list()
        busy = congestion("")
        rejections = (
            (LOCAL_LIMIT, "all associations that may run at a time are running"),
            (busy, "the disk is below the watermark, the outbox is full, or the service drains"),
            (PEER_NOT_ALLOWED, "the address is not allowed"),
            (USER_NOT_KNOWN, "users are configured, and the user is not known or the connection is not encrypted"),
            (negotiation.UNUSABLE_PDU_LENGTH, "the peer's maximum PDU length is below 128"),
            (negotiation.UNKNOWN_APPLICATION_CONTEXT, "the application context name is another one"),
            (negotiation.UNKNOWN_PROTOCOL_VERSION, "the protocol version is another one"),
            (
                negotiation.BAD_CALLED_AE_TITLE,
                "the called AE title is blank, has a control character or backslash, or is not allowed",
            ),
            (
                negotiation.BAD_CALLING_AE_TITLE,
                "the calling AE title is blank, has a control character or backslash, or is not allowed",
            ),
        )
        self._table(
            "rejections",
            "An association is rejected (PS3.8 Table 9-21) where",
            ("result / source / reason", "cause"),
            ((f"{found.result} / {found.source} / {found.reason}", cause) for found, cause in rejections),
        )
        self._claim(
            "abort",
            "What cannot be read as a PDU, and every breach of the protocol, is answered with A-ABORT, source 2. So is "
            "an A-ASSOCIATE-RQ without presentation contexts, or with an item longer than what it lies in.",
        )
        self._claim(
            "request-timeout",
            f"A connection that brings no A-ASSOCIATE-RQ within {limits.request_timeout:g} s is ended.",
        )
        self._claim(
            "idle-timeout",
            f"An association without a request for {limits.idle_timeout:g} s is ended with A-ABORT.",
        )
        self._end_of_list()
        self._table(
            "odd-requests",
            "What is odd in an A-ASSOCIATE-RQ costs the item that it is in and nothing else. A context with an even "
            "identifier gets no result. Contexts that share one, or have no abstract syntax that can be read, get "
            "result 3; those without a transfer syntax that can be read get result 4. The log line of the association "
            "names each oddity. The codes are those of the request; data sets have codes of their own, in the records:",
            ("code", "what is odd", "what becomes of it"),
            (
                (code, found.meaning, found.remedy)
                for code, found in ((code, advice.of_oddity(code, "")) for code in _core.request_oddities())
            ),
        )

    def _storage(self) -> None:
        scp, storage = self._settings.dicom_store_scp, self._settings.storage
        self._heading(4, "4.2.4 SOP specific conformance")
        self._claim("echo", "C-ECHO is answered with 0000 on every association, also when nothing can be stored.")
        self._claim(
            "level-2",
            "Storage Level 2 (Full): all attributes are stored, standard extended and private ones included. Where no "
            "transcoding applies, the bytes of the data set are stored as they were received.",
        )
        self._claim("no-coercion", "No attribute is coerced: B000 and B006 are never answered.")
        self._claim(
            "damaged-data-sets",
            {
                "refuse": "A damaged data set is answered with C000, and nothing of it is kept. B007 is never sent.",
                "quarantine": "A damaged data set, which would be answered with C000, is kept as received, durably, "
                "without a record, and answered with B007. It is not stored: it is in no folder of a tenant, and its "
                "record is not published. Senders take B007 for stored and may delete the instance. A receiver that "
                "forwards must not take B007 for delivered. At the bound `storage.quarantine_max_bytes` (here: "
                f"{storage.quarantine_max_bytes}) it is answered with C000.",
            }[scp.malformed],
        )
        self._claim(
            "files",
            "A file has a preamble of zeros, File Meta Information of this implementation and the data set; its "
            "name is "
            "`TENANT/STUDY DATE/STUDY UID/SERIES UID/SOP INSTANCE UID.dcm`.",
        )
        self._claim(
            "anomalies",
            "A data set that PS3.5 does not allow, and that other readers can follow to its end, is stored as "
            "received: superfluous delimiters, zero bytes behind it, unknown value representations, elements of "
            "reserved groups. Elements of group 0002 at its beginning are left out of the file.",
        )
        self._claim(
            "required-attributes",
            "Required, besides the four UIDs: " + (", ".join(scp.required_attributes) or "nothing") + ".",
        )
        duplicates = {
            "replace": "replaces the stored one, atomically, and is answered with 0000; the replaced file is kept for "
            "a time, and where there is no room to keep it the instance is answered with A700",
            "keep": "is answered with 0000, and the first stays; where that has no record and can get none, with A700",
            "reject": "is answered with A900, and the first stays",
        }[storage.duplicates]
        self._claim(
            "duplicates",
            "An instance that is stored already with the same bytes is answered with 0000; one with other bytes "
            f"{duplicates}.",
        )
        self._claim(
            "transcoding",
            "Images whose transfer syntax the viewers do not read are stored in "
            f"{name_of(self._settings.transcoding.target)} without loss; the SOP Instance UID stays. Where that fails "
            "they are stored "
            "as received.",
        )
        self._end_of_list()
        rows = [(0x0000, "stored, or stored already")]
        keeps = scp.malformed == "quarantine"
        rows += [(status, comment) for status, comment in _core.refusals() if keeps or "quarantine" not in comment]
        self._table(
            "statuses",
            "Status codes of C-STORE responses. Behind the first, each comes with an Error Comment (0000,0902) "
            "as given or "
            "alike:",
            ("status", "meaning (PS3.4 B.2.3, PS3.7 C)", "Error Comment", "what to do"),
            (
                (
                    f"{status:04X}",
                    _STATUS_MEANINGS[status],
                    comment,
                    advice.of_refusal(comment, status).text() if status else "",
                )
                for status, comment in rows
            ),
        )
        self._claim("other-operations", "Other DIMSE operations are answered with 0211.")
        self._end_of_list()

    def _interfaces(self) -> None:
        scp = self._settings.dicom_store_scp
        self._heading(3, "4.3 Network interfaces")
        self._claim("ipv6", "TCP over IPv4 or IPv6 (`dicom_store_scp.host`).")
        self._end_of_list()
        self._heading(3, "4.4 Configuration")
        titles = ", ".join(scp.allowed_calling_ae_titles) or "any"
        called = ", ".join(dict.fromkeys((*scp.allowed_called_ae_titles, scp.ae_title)))
        self._table(
            "parameters",
            "Parameters; the others are in the reference of the configuration.",
            ("parameter", "value"),
            (
                ("dicom_store_scp.ae_title", scp.ae_title),
                ("dicom_store_scp.port", str(scp.port)),
                ("called AE titles accepted", called if scp.allowed_called_ae_titles else "any"),
                ("calling AE titles accepted", titles),
                ("addresses accepted", ", ".join(scp.allowed_peers) or "any"),
                ("load balancers that send a PROXY header", ", ".join(scp.proxy_protocol_from) or "none"),
                ("dicom_store_scp.max_pdu_length", str(scp.max_pdu_length)),
                ("dicom_store_scp.max_associations", str(scp.max_associations)),
                ("limits.idle_timeout", f"{self._settings.limits.idle_timeout:g} s"),
                ("limits.request_timeout", f"{self._settings.limits.request_timeout:g} s"),
                ("limits.max_instance_bytes", str(self._settings.limits.max_instance_bytes)),
            ),
        )
        self._heading(2, "5 Media interchange")
        self._text("None.")

    def _character_sets(self) -> None:
        self._heading(2, "6 Support of character sets")
        self._claim(
            "character-sets",
            "Data sets are stored as they are, whatever their character set. For the record, Patient ID and "
            "Accession Number "
            "are read in " + ", ".join(_core.character_sets()) + ", with and without code extensions. What cannot be "
            "decoded becomes U+FFFD. Bytes above 7F under an unknown term are read as UTF-8 where they are valid "
            "UTF-8, else as ISO_IR 100. Where the term is absent they are read as ISO_IR 100.",
        )
        self._claim(
            "character-set-spellings",
            "Case, spaces, underscores, hyphens and the prefixes ISO, 2022 and IR make no difference in a term. These "
            "terms are understood too: " + ", ".join(_core.other_character_sets()) + ".",
        )
        self._claim(
            "character-sets-without-escapes",
            "Without an escape sequence, the first value of Specific Character Set that has codes above 7F is in "
            "force, also where an empty value or ISO 2022 IR 6 stands before it. UTF-8 that is named behind a "
            "single-byte set is read where the bytes are valid UTF-8. Kanji of Shift-JIS are read under ISO_IR 13. "
            "Escape sequences are followed whether their sets are named or not.",
        )
        self._end_of_list()

    def _security(self) -> None:
        tls = self._settings.tls
        self._heading(2, "7 Security")
        suites = ", ".join(_core.cipher_suites())
        self._claim(
            "tls",
            "BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12): TLS 1.2 and 1.3 with "
            f"{suites}. Nothing older, no renegotiation, no resumption. Here: "
            + ("not configured." if tls is None else f"configured, client certificates {tls.client_auth}."),
        )
        self._claim(
            "client-certificates",
            "A certificate that is not of the configured authority, has expired or was revoked does not come in; "
            "subjects "
            "can decide AE titles and tenants.",
        )
        users = self._settings.user_identity
        self._claim(
            "user-identity",
            "User identity negotiation (PS3.7 D.3.3.7): type 2, username and passcode, over TLS only; types 1, "
            "3, 4 and 5 are "
            "rejected where users are configured and ignored where none are. Here: "
            + ("none are configured." if users is None else "users are configured."),
        )
        self._claim(
            "audit",
            "Audit trail messages (PS3.15 A.5) by syslog over TLS or TCP (RFC 5424, 5425, 6587) or to a file. Here: "
            + ("not configured." if self._settings.audit is None else "configured."),
        )
        self._end_of_list()

    def _annexes(self) -> None:
        tenants = self._settings.tenants
        self._heading(2, "8 Annexes")
        self._text("8.1 IOD contents: no instances are created.")
        tag = f"({tenants.private_group:04X},{tenants.private_element:04X})"
        self._claim(
            "private-attributes",
            f"8.2 Private attributes: none is written. {tag} names the tenant where "
            "`tenants.from_private_element` is set (here: "
            f"{'set' if tenants.from_private_element else 'not set'}).",
        )
        self._end_of_list()
        self._text(
            "8.3 Coded terminology: none. 8.4 Greyscale image consistency: images are not displayed for diagnosis."
        )
        self._text("8.5 Standard extended, specialised and private SOP classes: none of its own.")
        private = [uid for uid in self._offer.transfer_syntaxes if _is_private(uid)]
        self._text("8.6 Private transfer syntaxes: " + (", ".join(sorted(private)) or "none") + ".")


def _is_private(uid: str) -> bool:
    return not uid.startswith("1.2.840.10008.")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
