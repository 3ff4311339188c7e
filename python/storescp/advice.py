"""What a refusal means, and what an administrator can do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from storescp import _core
from storescp.names import name_of
from storescp.settings import Settings


@dataclass(frozen=True)
class Advice:
    """What it means, and what to do."""

    meaning: str
    remedy: str

    def text(self) -> str:
        """Both, as a paragraph."""
        return f"{self.meaning} {self.remedy}"


_ALWAYS_REQUIRED = {
    "SOPClassUID": "SOP Class UID",
    "SOPInstanceUID": "SOP Instance UID",
    "StudyInstanceUID": "Study Instance UID",
    "SeriesInstanceUID": "Series Instance UID",
}

# Error Comments of C-STORE responses by what they contain; the first that fits.
_REFUSALS: tuple[tuple[str, Advice], ...] = (
    (
        "in quarantine: ",
        Advice(
            "The data set is damaged. It is kept in quarantine as received, without a record; the sender takes it for "
            "stored and may delete it.",
            "Have it sent again undamaged while the sender has it. 'storescpd quarantine list' shows it, and "
            "'storescpd quarantine retry' stores it when it can be read.",
        ),
    ),
    (
        "quarantine is full",
        Advice(
            "The data set is damaged, and the quarantine has reached storage.quarantine_max_bytes: it is not kept.",
            "Do not delete it on the sender. Look at 'storescpd quarantine list', and make room with 'storescpd "
            "quarantine retry' and 'forget', or raise the limit.",
        ),
    ),
    (
        "less free space than configured",
        Advice(
            "The file system of the storage root has less room than storage.min_free_bytes.",
            "Make room, or lower the limit; reception goes on by itself.",
        ),
    ),
    (
        "replaced files have reached their bound",
        Advice(
            "Instances are sent again with other bytes; what they replace fills storage.replaced_max_bytes.",
            "Stop the sender that changes and sends everything again, or raise the bound: the oldest go after a day.",
        ),
    ),
    (
        "transcoding is busy",
        Advice(
            "No worker was free to transcode the instance within transcoding.max_wait. One with this UID is stored, "
            "perhaps the same one, transcoded.",
            "The sender may try again. If it happens often, raise transcoding.workers or transcoding.max_wait.",
        ),
    ),
    (
        "the file in its place cannot be looked at",
        Advice(
            "An interruption left a record undecided, and the file at its path cannot be read or put aside.",
            "Look at the disk and at permissions; senders may try again.",
        ),
    ),
    (
        "the stored file has no record",
        Advice(
            "Another file lies in the place of the instance and stays (duplicates = 'keep'), and it is none of ours.",
            "Look at the file with 'storescpd verify', and move it elsewhere.",
        ),
    ),
    *(
        (
            kind,
            Advice(
                "The file system has no room left for the file, or its quota for this user is used up.",
                "Make room on the disk of the storage root, or raise the quota; senders may try again. With a larger "
                "storage.min_free_bytes the service refuses earlier and leaves room for its own records.",
            ),
        )
        for kind in ("storage: no storage space", "storage: quota exceeded")
    ),
    (
        "storage:",
        Advice(
            "The file system refused to take the file.",
            "Look at its mount, its permissions and the log of the kernel; senders may try again.",
        ),
    ),
    (
        "outbox limit",
        Advice(
            "Records wait that a topic has not got, up to outbox.max_rows or outbox.max_bytes.",
            "See why with 'storescpd outbox status'; reception goes on when the topics take records again.",
        ),
    ),
    (
        "outbox:",
        Advice(
            "The queue of records beneath the storage root cannot be written.",
            "Look at the room on its disk and at its permissions; senders may try again.",
        ),
    ),
    (
        "tenant quota",
        Advice(
            "The files of the tenant reach its quota_bytes in [[tenants.settings]].",
            "Raise the quota, or remove files of the tenant: what goes is noticed within an hour.",
        ),
    ),
    (
        "too many instances of this tenant",
        Advice(
            "The tenant's max_in_flight instances are on their way at this moment.",
            "The sender may try again; raise max_in_flight in [[tenants.settings]] where that is too often.",
        ),
    ),
    (
        "size limit",
        Advice(
            "The instance is longer than limits.max_instance_bytes.",
            "Raise the limit if the sender means well.",
        ),
    ),
    (
        "differs from the command",
        Advice(
            "The sender announced another instance than it sent (PS3.4 B.2.3: data set does not match SOP class).",
            "The fault is in the sender; tell its vendor.",
        ),
    ),
    *(
        (
            f"{keyword} is absent or empty",
            Advice(
                f"The {name} has no value, and it is always required: the path of the stored file has it.",
                "The fault is in the sender; tell its vendor.",
            ),
        )
        for keyword, name in _ALWAYS_REQUIRED.items()
    ),
    (
        "is absent or empty",
        Advice(
            "A required attribute has no value.",
            "Have the sender fill it in, or take it out of required_attributes.",
        ),
    ),
    (
        "is invalid",
        Advice(
            "A required attribute has a value that its VR does not allow.",
            "Have the sender correct it, or take it out of required_attributes.",
        ),
    ),
    (
        "a different instance with this UID",
        Advice(
            "Another instance with the same UIDs is stored, and storage.duplicates is 'reject'.",
            "Find out which of the two is right: two images must not share a UID. storage.duplicates says what becomes "
            "of the second: 'reject', 'keep' the stored one, or 'replace' it.",
        ),
    ),
    (
        "AffectedSOPInstanceUID",
        Advice("The command has no valid SOP Instance UID.", "The fault is in the sender; tell its vendor."),
    ),
    (
        "AffectedSOPClassUID",
        Advice(
            "The command names another SOP class than was negotiated.", "The fault is in the sender; tell its vendor."
        ),
    ),
    (
        "tenant not authorised",
        Advice(
            "No tenant is known for this sender.",
            "Add a rule to [[tenants.rules]], a value to tenants.known, or set tenants.default.",
        ),
    ),
    (
        "reaches the end",
        Advice(
            "An element has a value representation that does not exist, and no way to read it leads to the end.",
            "The fault is in the sender; tell its vendor which element it is. The instance is not stored.",
        ),
    ),
    (
        "differ in identity",
        Advice(
            "An element has a value representation that does not exist. Read in one way, the data set is another "
            "instance than read in another way.",
            "The fault is in the sender; tell its vendor which element it is. The instance is not stored.",
        ),
    ),
    (
        "internal error",
        Advice("A bug of this program; nothing of the instance was kept.", "Report it with the log around this time."),
    ),
    (
        "unrecognised operation",
        Advice("The sender asked for a DIMSE service that a Storage SCP has not.", "Send C-STORE or C-ECHO only."),
    ),
    (
        "data set missing or unexpected",
        Advice("A C-STORE came without data set, or a C-ECHO with one.", "The fault is in the sender."),
    ),
)
# What each code of an anomaly means.
ANOMALIES: dict[str, str] = {
    "delimiter": "An item or sequence delimiter is superfluous or has a length (PS3.5 7.5). Readers do not mind it.",
    "trailing_bytes": "More than one zero byte follows the last element.",
    "illegal_vr": "An element has a value representation that is not in PS3.5 6.2, or none. It is read as DCMTK or "
    "pydicom reads it, whichever reaches the end of the data set.",
    "reserved_group": "An element belongs to group 0001, 0003, 0005 to 0007 or FFFF (PS3.5 7.1), or to group 0002 "
    "behind other elements.",
    "file_meta_in_data_set": "The data set begins with elements of group 0002. They are left out of the file, because "
    "readers would take them for the file's own; everything else is stored as received.",
    "character_set": "Text does not fit its Specific Character Set. In the record, U+FFFD stands for what cannot be "
    "read.",
    "sequence_content": "The content of a sequence of known length is not made of items. Readers that do not open the "
    "sequence read on behind it.",
    "pixel_data_encoding": "Pixel Data are encapsulated in a native transfer syntax, or native in an encapsulated one "
    "(PS3.5 A.4).",
    "transcoding_busy": "Nothing is odd about the data set: no process was free within transcoding.max_wait to "
    "transcode it. 'storescpd transcode --stored' does it later. Where it happens often, raise transcoding.workers.",
}

_CANNOT_BE_READ = Advice(
    "The data set cannot be read to its end: it is damaged, cut short, or breaks a rule of PS3.5.",
    "Look at the file on the sender with 'storescpd inspect'; it is not stored, so do not delete it there.",
)
# PS3.4 Table B.2-1: C000 to CFFF, Cannot understand.
_CANNOT_UNDERSTAND = 0xC
_UNKNOWN = Advice("There is no more to say about it.", "See the log around this time.")


def of_refusal(comment: str, status: int, tenant_value: str | None = None) -> Advice:
    """Advice for a C-STORE that was refused, by Error Comment and status.

    `tenant_value` is what the private element says where it names a tenant that is not known.
    """
    if tenant_value is not None:
        return Advice(
            f"The private element of the instance names the tenant '{tenant_value}', which is not known.",
            "Add it to tenants.known, or have the sender name another one.",
        )
    for part, advice in _REFUSALS:
        if part in comment:
            return advice
    return _CANNOT_BE_READ if status >> 12 == _CANNOT_UNDERSTAND else _UNKNOWN


def of_transcoding(reason: str) -> Advice:
    """Advice for an instance that was stored as received because it could not be transcoded."""
    if "no process was free" in reason:
        return Advice(
            "All processes that transcode had other instances for as long as transcoding.max_wait. It is stored as it "
            "was received, and its record says Failed and transcoding_busy.",
            "Run 'storescpd transcode --stored' when there is less to do. Where it happens often, raise "
            "transcoding.workers.",
        )
    if "not finished within" in reason:
        return Advice(
            "It is stored as it was received: its pixels took longer than transcoding.instance_timeout.",
            "Is it very large? Then raise transcoding.instance_timeout, and run 'storescpd transcode --stored --all'.",
        )
    if "no codec" in reason:
        remedy = "Viewers that need it converted cannot show it; its record says Failed."
    else:
        remedy = "Look at the file with 'storescpd inspect'; its record says Failed."
    return Advice("It is stored as it was received: its pixels could not be converted without doubt.", remedy)


@dataclass(frozen=True)
class Knock:
    """Who asked for an association, as far as that is known, and what was wrong."""

    address: str
    calling: str = ""
    called: str = ""
    detail: str = ""
    proxy: str = ""  # address of the load balancer that passed it on


def of_connection(cause: str, knock: Knock, settings: Settings) -> Advice:
    """Advice for a connection that was turned away before it was an association; the detail is that of the core."""
    if knock.detail == _core.PROXY_HEADER_UNEXPECTED:
        return Advice(
            f"{knock.address} sends a PROXY header and is not in dicom_store_scp.proxy_protocol_from.",
            "If it is your load balancer, add its address to the list. Otherwise turn the header off on its side.",
        )
    if knock.detail == _core.PROXY_HEADER_SECOND:
        return Advice(
            "The connection begins with two PROXY headers, as where one load balancer stands behind another.",
            "Have the one that connects here read the header of the other one (HAProxy: accept-proxy).",
        )
    return of_rejection(cause, replace(knock, detail=""), settings)


def of_rejection(cause: str, knock: Knock, settings: Settings) -> Advice:
    """Advice for an association or a connection that was turned away."""
    if cause == "malformed_request" and knock.detail:
        return Advice(
            f"The A-ASSOCIATE-RQ cannot be followed: {knock.detail}.",
            "The fault is in the sender; tell its vendor. Items that are only odd would have been passed over.",
        )
    scp = settings.dicom_store_scp
    ours = ", ".join(dict.fromkeys((*scp.allowed_called_ae_titles, scp.ae_title)))
    advices = {
        "called_ae_title": Advice(
            f"The sender calls us '{knock.called}', and we are: {ours}.",
            "Correct the called AE title on the sender, or add it to dicom_store_scp.allowed_called_ae_titles.",
        ),
        "calling_ae_title": Advice(
            f"The sender calls itself '{knock.calling}', which may not come in.",
            "Add it to dicom_store_scp.allowed_calling_ae_titles, and to [[tls.clients]] where there are any.",
        ),
        "peer_address": Advice(
            f"The address {knock.address} is in none of dicom_store_scp.allowed_peers.",
            "Add the address or its network.",
        ),
        "association_limit": Advice(
            "All associations that may run at once are running.",
            "The sender may try again; see dicom_store_scp.max_associations and the limits for each address and title.",
        ),
        "user_identity": Advice(
            "The sender gave no user name and passcode that are known, or gave them without TLS.",
            "Make a line for it with 'storescpd passcode', and have it connect by TLS.",
        ),
        "draining": Advice("The service is being stopped.", "The sender may try again after the next start."),
        "application_context": Advice(
            "The request is not for the DICOM application context (PS3.7 A.2.1).", "Is the sender a DICOM device?"
        ),
        "protocol_version": Advice(
            "The request is for a protocol version that there is not (PS3.8 9.3.2).", "Is the sender a DICOM device?"
        ),
        "max_pdu_length": Advice(
            "The sender takes only PDUs that are too short for a response.",
            "Raise the maximum PDU length on the sender: 16384 is usual.",
        ),
        "malformed_request": Advice(
            "What came is not an A-ASSOCIATE-RQ.",
            "Is the sender a DICOM device? TLS connections go to tls.port; where tls.port is not set, the DICOM port "
            "takes TLS only.",
        ),
        "request_memory": Advice(
            "The requests of all connections, or those of this address, took more memory than they may.",
            "Devices send requests of a few kilobytes: is something sending long ones on purpose?",
        ),
        "request_timeout": Advice(
            "The connection was opened and no whole request came in time.",
            "Port scanners and monitors do that. If it is a sender: is its network slow? Does it speak TLS?",
        ),
        "tls_handshake": Advice(
            "TLS could not be agreed on.",
            "See the detail. Does the sender have a certificate of the authority in tls.client_ca, and speak TLS 1.2?",
        ),
        "proxy_header": Advice(
            f"{knock.address} is in dicom_store_scp.proxy_protocol_from, and its connection does not begin with a "
            "PROXY header that can be followed.",
            "See the detail. Turn the header on at the load balancer (HAProxy: send-proxy-v2), or take the address out "
            "of the list.",
        ),
        "unreadable_certificate": Advice(
            "The client certificate cannot be read.", "Have the sender get another certificate."
        ),
        "connections": Advice(
            "All connections that may be open at once are open.", "See limits.max_connections; is something looping?"
        ),
        "connections_per_address": Advice(
            f"All connections that {knock.address} may have are open.",
            "See limits.max_connections_per_address; is something looping there?",
        ),
    }
    return advices.get(cause) or of_refusal(cause, 0)


def of_context(abstract_syntax: str, result: int, transfer_syntaxes: Sequence[str]) -> Advice:
    """Advice for a presentation context that was rejected (PS3.8 Table 9-18)."""
    if abstract_syntax == _core.NO_SYNTAX:
        return Advice(
            "The context names no class that can be read, or shares its identifier with another one.",
            "The fault is in the sender; tell its vendor.",
        )
    what = _name(abstract_syntax)
    if result == _NO_TRANSFER_SYNTAX:
        offered = ", ".join(_name(uid) for uid in transfer_syntaxes if uid != _core.NO_SYNTAX) or "nothing readable"
        return Advice(
            f"{what} was offered only in what is not taken: {offered}.",
            "Have the sender offer a standard transfer syntax; with uncompressed_only a native one.",
        )
    if name_of(abstract_syntax):
        return Advice(f"{what} is not a class of images or documents to be stored.", "Send it to whoever provides it.")
    return Advice(f"{what} is a private class.", "dicom_store_scp.promiscuous takes private classes.")


_PASSED_OVER = "It is passed over; nothing is to be done."
_LEFT_OUT = "The sender cannot send by this context; tell its vendor."
# What was odd in an A-ASSOCIATE-RQ by its code; the detail follows the meaning.
_ODDITIES: dict[str, Advice] = {
    "unknown_item": Advice("The request has an item of a type that is not known there (PS3.8 9.3.1)", _PASSED_OVER),
    "repeated_item": Advice("The request has an item twice that may be there once", "One of them counts."),
    "missing_item": Advice("The request lacks an item that PS3.8 9.3.2 asks for", "The defaults apply."),
    "trailing_bytes": Advice("Zero bytes follow the last item", _PASSED_OVER),
    "padded_uid": Advice("A UID has padding, which PS3.8 Annex F does not allow", "It is read without."),
    "application_context": Advice("An application context name cannot be read", "It does not count."),
    "presentation_context": Advice("A presentation context is too short to have an identifier", _LEFT_OUT),
    "context_id": Advice("A presentation context has an even identifier (PS3.8 9.3.2.2)", _LEFT_OUT),
    "repeated_context_id": Advice("Several presentation contexts have the same identifier", _LEFT_OUT),
    "abstract_syntax": Advice("A presentation context has no abstract syntax that can be read", _LEFT_OUT),
    "transfer_syntax": Advice(
        "A transfer syntax cannot be read, or a presentation context has none", "The others of the context count."
    ),
    "maximum_length": Advice("The maximum length has other than four bytes", "Without four there is no maximum."),
    "implementation_class_uid": Advice("The implementation class UID is none", _PASSED_OVER),
    "implementation_version_name": Advice(
        "The implementation version name is not 1 to 16 characters of ASCII (PS3.7 D.3.3.2)", _PASSED_OVER
    ),
    "asynchronous_operations": Advice("The asynchronous operations window breaks PS3.7 D.3.3.3", _PASSED_OVER),
    "role_selection": Advice("A role selection breaks PS3.7 D.3.3.4", _PASSED_OVER),
    "extended_negotiation": Advice("An extended negotiation breaks PS3.7 D.3.3.5", _PASSED_OVER),
    "common_extended_negotiation": Advice("A common extended negotiation breaks PS3.7 D.3.3.6", _PASSED_OVER),
    "user_identity": Advice(
        "The user identity has an unknown type or breaks PS3.7 D.3.3.7",
        "Without one that can be read, the sender is nobody where users are configured.",
    ),
    "ae_title": Advice(
        "An AE title field has more than a title, or bytes beyond ASCII",
        "What follows a NUL does not count; a byte beyond ASCII is a question mark in lists of titles and records.",
    ),
    "more": Advice("The request has further oddities", "The first sixteen are told."),
}


def of_oddity(code: str, detail: str) -> Advice:
    """Advice for something odd in a request that was taken all the same."""
    found = _ODDITIES[code]
    return Advice(f"{found.meaning}: {detail}." if detail else f"{found.meaning}.", found.remedy)


_NO_TRANSFER_SYNTAX = 4


def _name(uid: str) -> str:
    name = name_of(uid)
    return f"{name} ({uid})" if name else uid


# Events of the log at warning and above, by their beginning; the first that fits.
_EVENTS: tuple[tuple[str, str], ...] = (
    (
        "publish.rejected",
        (
            "The broker refused the record for good: see 'storescpd outbox list --dead'. When the cause is mended, "
            "'storescpd outbox retry' has it tried again."
        ),
    ),
    ("publish.failed", "Nothing is lost: records wait in the outbox until the topic takes them. The reason says why."),
    ("kafka.client", "What the Kafka client says; see also the state of the topics."),
    ("outbox.damaged", "Run 'storescpd verify' when it is quiet, and look at the disk."),
    ("outbox.", "Look at the room on the disk of the storage root and at its permissions."),
    ("tls.", "Renew it, and send the process a SIGHUP."),
    ("audit.", "Look at the destination of the audit trail."),
    ("association.timeout", "The sender was silent or too slow: see limits.idle_timeout and limits.min_rate."),
    ("association.connection_lost", "The network or the sender broke off; what was acknowledged is stored."),
    ("association.aborted_by_peer", "The sender broke off; what was acknowledged is stored."),
    ("association.protocol_error", "The sender broke the protocol as the reason says; tell its vendor."),
    ("association.released", "Some of its instances were refused or not transcoded; the reasons are beside this."),
    ("association.stopped", "The service stopped before the sender was done; what was acknowledged is stored."),
    ("evaluation.", "Make a licence with 'storescpd license issue' and a configuration to leave evaluation mode."),
    ("configuration.", "Correct it in the configuration."),
    ("http.", "Set http.token, or bind http.host to 127.0.0.1."),
    (
        "quarantine.waits",
        "Look at each with 'storescpd quarantine list', and have it sent again while senders have it.",
    ),
    ("quarantine.", "Look at the disk of the storage root: entries stay in quarantine until they are stored."),
    ("recovery.", "Run 'storescpd verify' to see each file."),
    ("storage.low_space", "Make room on the disk, or lower storage.min_free_bytes."),
    ("storage.quarantined", "Look at each with 'storescpd quarantine show', and at the disk: no file was deleted."),
    ("storage.", "Look at the disk and at the permissions of the folders that are named: no file was deleted."),
    ("transcoding.workers_limited", "Raise the memory limit, or lower transcoding.worker_memory_bytes."),
    ("start_up.", "Nothing to do: what was acknowledged is kept, and senders send the rest again."),
)


def of_event(event: str) -> str:
    """What to do about a line of the log, or nothing."""
    return next((text for beginning, text in _EVENTS if event.startswith(beginning)), "")
