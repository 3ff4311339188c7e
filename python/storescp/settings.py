"""The configuration as types: every key, its default and its bounds.

Sections and keys are those of the configuration file; units are in the names or in the comment beside them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography import x509
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
    field_validator,
)
from pydantic_core.core_schema import CoreSchema, no_info_before_validator_function

from storescp import _core, quantities
from storescp.names import transfer_syntax_like
from storescp.network.identity import SubjectPattern

TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UID_CHARACTERS, _AE_TITLE_CHARACTERS = 64, 16  # PS3.5 6.2
_ROOT_BYTES = 200
_NODE_CHARACTERS = 64
MOST_RECORD_ATTRIBUTES = 100
_LAST_PORT = 65535
_KAFKA_PORT = 9092
MOST = (1 << 63) - 1
LEAST_WORKER_BYTES = 256 << 20
DEFAULT_TENANT = "1234567890"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

# What a CornerstoneJS viewer reads.
VIEWER_TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
    "3.2.840.10008.1.2.4.96",
)
# What QIDO-RS returns (PS3.18 10.6.3.3) and no other field of a record has, and what a worklist shows besides.
RECORD_ATTRIBUTES = (
    "TimezoneOffsetFromUTC",
    "StudyTime",
    "Modality",
    "ReferringPhysicianName",
    "StudyDescription",
    "SeriesDescription",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "BodyPartExamined",
    "StudyID",
    "SeriesNumber",
    "InstanceNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "RequestAttributesSequence",
)
# A lossy target would need a new SOP Instance UID (PS3.3 C.7.6.1.1.5), so the core encodes none.
TARGETS = tuple(uid for uid, _name, _decodes, encodes in _core.transfer_syntaxes() if encodes)


def _uid(text: str) -> str:
    if len(text) > _UID_CHARACTERS or not _UID.fullmatch(text):
        raise ValueError(f"a UID: digits and dots, at most 64 characters{_did_you_mean(text)}")
    return text


def _target(text: str) -> str:
    if text not in TARGETS:
        expected = "a lossless transfer syntax that can be encoded: " + ", ".join(sorted(TARGETS))
        raise ValueError(f"{expected}{_did_you_mean(text)}")
    return text


def _did_you_mean(text: str) -> str:
    found = None if _UID.fullmatch(text) else transfer_syntax_like(text)
    return "" if found is None else f"; did you mean {found[0]} ({found[1]})?"


def ae_title(text: str) -> str:
    """An AE title without the spaces around it.

    Raises:
        ValueError: it is none.
    """
    # PS3.5 6.2 AE: 16 characters of the default repertoire without backslash and control characters.
    if (
        not 1 <= len(text.strip()) <= _AE_TITLE_CHARACTERS
        or "\\" in text
        or not text.isascii()
        or not text.isprintable()
    ):
        raise ValueError("an AE title: 1 to 16 printable ASCII characters, no backslash")
    return text.strip()


def _keyword(text: str) -> str:
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415 - the dictionary is large and rarely needed

    if tag_for_keyword(text) is None:
        raise ValueError("a keyword of the DICOM data dictionary, for instance PatientID")
    return text


def _record_keyword(text: str) -> str:
    if not _core.is_record_attribute(_keyword(text)):
        raise ValueError("a keyword of an attribute whose values are text, numbers or a sequence")
    return text


def _node_id(text: str) -> str:
    if not 1 <= len(text) <= _NODE_CHARACTERS or not text.isprintable():
        raise ValueError(f"a name of 1 to {_NODE_CHARACTERS} printable characters")
    return text


def _tenant_id(text: str) -> str:
    if not TENANT_ID.fullmatch(text):
        raise ValueError("a tenant id: 1 to 64 letters, digits, '_' or '-', beginning with a letter or digit")
    return text


def _optional_tenant_id(text: str) -> str:
    return text if text == "" else _tenant_id(text)


def _subject(text: str) -> str:
    SubjectPattern.parse(text)
    return text


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("an address or a network like 10.1.0.0/16") from None
    return text


def _brokers(text: str) -> str:
    brokers = [broker.strip() for broker in text.split(",")]
    brokers = [broker if re.search(r":[0-9]+$", broker) else f"{broker}:{_KAFKA_PORT}" for broker in brokers]
    for broker in brokers:
        host, _, port = broker.rpartition(":")
        if not re.fullmatch(r"[^\s:/]+|\[[^\s\]]+\]", host) or not 1 <= int(port) <= _LAST_PORT:
            raise ValueError("host:port, or several with commas between them")
    return ",".join(brokers)


def is_utf8(text: str) -> bool:
    """Whether a text, or the name of a file, can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path without a NUL character")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("a path that begins with the name of a user who has a home folder, or without '~'") from None


def _root(path: Path) -> Path:
    absolute = path.absolute()
    if not is_utf8(str(absolute)):
        raise ValueError("a path in UTF-8")
    if len(str(absolute).encode()) > _ROOT_BYTES:
        raise ValueError("a path of at most 200 bytes")
    return absolute


def _tag_number(value: object) -> object:
    """A group or element number in text, also like 0x1211. Anything else stays as it is, and is checked further."""
    try:
        return int(value, 0) if isinstance(value, str) else value
    except ValueError:
        return value


def _oid(text: str) -> str:
    try:
        x509.ObjectIdentifier(text)
    except ValueError:
        raise ValueError("an object identifier like 1.3.6.1.4.15967132172.1") from None
    return text


def _audit_destination(text: str) -> str:
    expected = f"tls://HOST:PORT, tcp://HOST:PORT (port 1 to {_LAST_PORT}) or file:PATH"
    if text.startswith("file:"):
        path = _path(Path(text.removeprefix("file:").removeprefix("//")))
        if path == Path():
            raise ValueError(expected)
        return f"file:{path}"
    found = re.fullmatch(r"(tls|tcp)://[^\s/:@]+:([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[2]) <= _LAST_PORT:
        raise ValueError(expected)
    return text


@dataclass(frozen=True)
class Unit:
    """The unit of a key. Its values may be given with another unit of the same kind; after the bounds in the type."""

    name: str
    parse: Callable[[object], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"unit": self.name}


BYTES = Unit("bytes", quantities.size)
SECONDS = Unit("seconds", quantities.seconds)
MILLISECONDS = Unit("milliseconds", quantities.milliseconds)
# The examples are told to those who give something else than a list, and are in the reference.
Uid = Annotated[str, AfterValidator(_uid), Field(examples=["1.2.840.10008.1.2.1"])]
Target = Annotated[str, AfterValidator(_target)]
AeTitle = Annotated[str, AfterValidator(ae_title), Field(examples=["CT1"])]
Keyword = Annotated[str, AfterValidator(_keyword), Field(examples=["PatientID"])]
RecordKeyword = Annotated[str, AfterValidator(_record_keyword), Field(examples=["PatientName"])]
NodeId = Annotated[str, AfterValidator(_node_id)]
TenantId = Annotated[str, AfterValidator(_tenant_id), Field(examples=["hospital-a"])]
OptionalTenantId = Annotated[str, AfterValidator(_optional_tenant_id)]
Subject = Annotated[str, AfterValidator(_subject)]
Brokers = Annotated[str, AfterValidator(_brokers)]
HostName = Annotated[str, Field(examples=["status.hospital.example"])]
Network = Annotated[str, AfterValidator(_network), Field(examples=["10.1.0.0/16"])]
FilePath = Annotated[Path, AfterValidator(_path)]
StorageRoot = Annotated[FilePath, AfterValidator(_root)]
Oid = Annotated[str, AfterValidator(_oid)]
AuditDestination = Annotated[str, AfterValidator(_audit_destination)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400), SECONDS]
# What the core counts with.
PositiveCount = Annotated[int, Field(ge=1, le=MOST)]
PositiveSize = Annotated[int, Field(ge=1, le=MOST), BYTES]


class Section(BaseModel):
    """A table of the configuration file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, str | Path) and not is_utf8(str(part)):
                raise ValueError("text in UTF-8")
        return value


class DicomStoreScp(Section):
    """`[dicom_store_scp]`: what is listened to, and who may send."""

    host: str | None = Field(
        None, description="address to listen on; without it 0.0.0.0, or 127.0.0.1 in evaluation mode"
    )
    port: Port = Field(11111, description="TCP port to listen on; 0: any free port, which is printed")
    ae_title: AeTitle = Field("STORE-SCP", description="AE title of this service")
    max_pdu_length: Annotated[int, Field(ge=4096, le=131072), BYTES] = Field(
        16384, description="maximum length of a P-DATA-TF PDU that senders are told, in bytes"
    )
    strict: bool = Field(
        False, description="whether an association is aborted when a P-DATA-TF PDU is longer than max_pdu_length"
    )
    promiscuous: bool = Field(False, description="whether unknown and private SOP classes are accepted")
    uncompressed_only: bool = Field(
        False, description="whether only the native transfer syntaxes are accepted: nothing compressed or deflated"
    )
    non_blocking: bool = Field(
        True, description="whether many associations are served at once; false: one at a time, and the others wait"
    )
    max_associations: Annotated[int, Field(ge=1, le=10000)] = Field(
        100, description="maximum number of associations at once"
    )
    malformed: Literal["refuse", "quarantine"] = Field(
        "refuse",
        description="what becomes of a damaged data set: `refuse`: it is answered with C000; `quarantine`: it is kept "
        "in `.quarantine/` without a record and answered with B007, which senders take for stored",
    )
    required_attributes: tuple[Keyword, ...] = Field(
        (),
        description="keywords of the attributes without which an instance is refused; SOP Class, SOP Instance, Study "
        "Instance and Series Instance UID are always required",
    )
    allowed_called_ae_titles: tuple[AeTitle, ...] = Field(
        (),
        description="AE titles that senders may call this service by, besides ae_title and the called_ae of the tenant "
        "rules; empty: any title",
    )
    allowed_calling_ae_titles: tuple[AeTitle, ...] = Field(
        (), description="AE titles of the senders that may open an association; empty: any title"
    )
    allowed_peers: tuple[Network, ...] = Field(
        (), description="addresses and networks of the senders that may open an association; empty: any address"
    )
    proxy_protocol_from: tuple[Network, ...] = Field(
        (),
        description="addresses and networks of the load balancers whose connections begin with a PROXY header (version "
        "1 or 2); the address in the header counts as that of the sender; empty: no header is read",
    )


class DicomLicenseServer(Section):
    """`[dicom_license_server]`: required, except in evaluation mode."""

    client_id: str = Field(min_length=1, description="name of the client that the licence was issued to")
    license_key: SecretStr = Field(min_length=1, description="licence key: the hash code in the client certificate")
    client_certificate: FilePath = Field(Path("client.pem"), description="file of the client certificate, PEM")
    ca_certificate: FilePath = Field(
        Path("ca.pem"), description="file of the certificate of the authority that issued the client certificate, PEM"
    )
    hash_code_oid: Oid = Field(
        "1.3.6.1.4.15967132172.1",
        description="object identifier of the extension of the client certificate that holds the hash code",
    )


class Storage(Section):
    """`[storage]`: where instances are stored, and how durably."""

    root: StorageRoot = Field(
        Path("storescp-data"), validate_default=True, description="folder of the stored instances: the storage root"
    )
    durability: Literal["full", "data", "none"] = Field(
        "full",
        description="what is on the disk before success is answered: `full`: the file, its name and its record; "
        "`data`: the file and its record, not its name; `none`: nothing is waited for, so that a power cut may lose "
        "instances",
    )
    duplicates: Literal["replace", "keep", "reject"] = Field(
        "replace", description="what becomes of a second instance with the same UIDs and other bytes"
    )
    create: bool = Field(
        True,
        description="whether a storage root that does not exist is made; false: the root must exist with its identity "
        "file `.outbox/identity`, else the exit code is 75",
    )
    replaced_retention: Annotated[float, Field(ge=0, le=3153600000.0, allow_inf_nan=False), SECONDS] = Field(
        2592000.0, description="how long a replaced file is kept in `.replaced/`, in seconds; 0: it is not kept"
    )
    replaced_max_bytes: PositiveSize | None = Field(
        None, description="maximum bytes that `.replaced/` may hold; without it a tenth of the disk"
    )
    quarantine_max_bytes: PositiveSize = Field(
        10 << 30,
        description="maximum bytes of damaged data sets that `.quarantine/` of a storage root may hold; beyond it they "
        "are refused",
    )
    min_free_bytes: Annotated[int, Field(ge=0, le=MOST), BYTES] = Field(
        1 << 30, description="free bytes on the disk of the storage root below which no instance is accepted"
    )
    spool_memory_bytes: Annotated[int, Field(ge=4096, le=1 << 28), BYTES] = Field(
        1 << 20,
        description="maximum bytes of one incoming instance that are held in memory; the rest goes to a temporary file",
    )


class MessageQueue(Section):
    """`[message_queue]`: names of the topics, and what records say."""

    topic_main: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "storage_queue", description="name of the topic for the readers that build patients, studies and series"
    )
    topic_dicom_receive: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "log_queue", description="name of the topic of the acquisition log"
    )
    record_attributes: tuple[RecordKeyword, ...] = Field(
        RECORD_ATTRIBUTES,
        max_length=MOST_RECORD_ATTRIBUTES,
        description="keywords of the attributes that records have in `dicom`, besides those that have a field of their "
        "own; text, numbers and sequences, of which one level is taken; []: none",
    )
    created_time: Literal["utc", "local"] = Field(
        "utc",
        description="time zone of `created_time` in records, which is written without a zone: `utc`, or `local` for "
        "that of this machine; `received_at` is in UTC always",
    )
    missing_study_date: date | None = Field(
        None,
        description="`study_date` in the records of instances that have none, for consumers that need one, for "
        "instance 1900-01-01; without it null",
    )


class JsonLines(Section):
    """`[json_lines]`: the files of records that are written where there is no `[kafka]`."""

    max_bytes: Annotated[int, Field(ge=0), BYTES] = Field(
        0, description="bytes from which a file is renamed and a new one is begun; 0: never"
    )


class Kafka(Section):
    """`[kafka]`: the brokers that records are published to."""

    brokers: Brokers = Field(description="host:port of a broker, several with commas between them; without a port 9092")
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "storescp", description="name of this client in the logs and quotas of the brokers"
    )
    compression_codec: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", description="compression of the batches of records"
    )
    linger_ms: Annotated[int, Field(ge=0, le=60000), MILLISECONDS] = Field(
        5, description="how long a first record waits for more records in its batch, in milliseconds"
    )
    batch_num_messages: Annotated[int, Field(ge=1, le=100000)] = Field(
        1000, description="maximum number of records in a batch"
    )
    batch_bytes: Annotated[int, Field(ge=1024, le=1 << 26), BYTES] = Field(
        1 << 19, description="maximum bytes of a batch before compression"
    )
    request_timeout: Seconds = Field(
        10.0, description="how long a broker may take to answer before it is asked again, in seconds"
    )
    delivery_timeout: Seconds = Field(
        120.0, description="how long a producer may be without success before it is replaced, in seconds"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="connection with TLS (`SSL`) or without, with a login (`SASL`) or without"
    )
    ssl_cafile: FilePath | None = Field(
        None,
        description="file of the authorities that may issue the certificates of the brokers, PEM; without it those of "
        "the system",
    )
    ssl_certfile: FilePath | None = Field(
        None, description="file of the client certificate, PEM, for brokers that ask for one"
    )
    ssl_keyfile: FilePath | None = Field(None, description="file of the private key of the client certificate, PEM")
    ssl_key_password: SecretStr | None = Field(None, description="password of the private key")
    ssl_check_hostname: bool = Field(True, description="whether the certificate of a broker must name its host")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="mechanism of the login; required with SASL"
    )
    sasl_username: str | None = Field(None, description="user name of the login; required with SASL")
    sasl_password: SecretStr | None = Field(None, description="password of the login; required with SASL")


class Index(Section):
    """`[index]`: the database that `storescpd index` keeps up to date."""

    database: SecretStr = Field(
        SecretStr("sqlite:///storescp-index.sqlite"),
        description="SQLAlchemy URL of the database, for example `postgresql+psycopg://USER:PASSWORD@HOST/NAME`",
    )
    group_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "storescp-index", description="consumer group; workers of the same group share the partitions"
    )
    max_records: Annotated[int, Field(ge=1, le=10000)] = Field(
        1000, description="maximum number of records in a transaction"
    )


class Events(Section):
    """`[events]`: what `storescpd index` tells when a study has been received."""

    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,249}$")] = Field(
        "study_events", description='name of the topic of study events; "": none are published'
    )
    quiet: Seconds = Field(
        60.0, description="how long no instance of a study may have come until it is told that it is quiet, in seconds"
    )
    force: Seconds = Field(
        5400.0,
        description="how long instances of a study may keep coming until an event is made all the same, in seconds",
    )
    command_timeout: Seconds = Field(
        300.0, description="how long the command of `--on-study` may take for one event, in seconds"
    )


class TenantRule(Section):
    """`[[tenants.rules]]`: the first rule counts of which every given field matches."""

    tenant_id: TenantId = Field(description="tenant that the instances belong to")
    called_ae: AeTitle | None = Field(None, description="called AE title of the association; without it any")
    calling_ae: AeTitle | None = Field(None, description="calling AE title of the association; without it any")
    source: Network | None = Field(None, description="address or network of the sender; without it any")
    tls_subject: Subject | None = Field(
        None, description="attributes in the subject of the client certificate; without it any"
    )


class TenantSettings(Section):
    """`[[tenants.settings]]`: limits and storage of one tenant."""

    tenant_id: TenantId = Field(description="tenant that these settings are for")
    quota_bytes: PositiveSize | None = Field(
        None, description="maximum bytes that this tenant may store; without it no maximum"
    )
    max_in_flight: PositiveCount | None = Field(
        None, description="maximum number of instances of this tenant that are received at once; without it no maximum"
    )
    storage_root: StorageRoot | None = Field(
        None, description="folder for the instances of this tenant; without it storage.root"
    )
    required_attributes: tuple[Keyword, ...] | None = Field(
        None,
        description="keywords of the attributes without which an instance of this tenant is refused; without it "
        "dicom_store_scp.required_attributes",
    )


class Tenants(Section):
    """`[tenants]`: which tenant an instance belongs to."""

    default: OptionalTenantId = Field(
        DEFAULT_TENANT,
        description="tenant of the instances that no rule matches, wado-storescp's value by default; empty: such "
        "instances are refused",
    )
    rules: tuple[TenantRule, ...] = Field((), description="rules in the order in which they are tried")
    settings: tuple[TenantSettings, ...] = Field((), description="limits and storage of single tenants")
    from_private_element: bool = Field(
        False, description="whether a private element names the tenant of an instance that no rule matches"
    )
    known: tuple[TenantId, ...] = Field((), description="tenants that the private element may name; others are refused")
    private_group: Annotated[int, Field(ge=0x0009, le=0xFFFD), BeforeValidator(_tag_number)] = Field(
        0x1211, description="group number of the private element"
    )
    private_element: Annotated[int, Field(ge=0x1000, le=0xFFFF), BeforeValidator(_tag_number)] = Field(
        0x1217, description="element number of the private element"
    )


class TlsClient(Section):
    """`[[tls.clients]]`: the AE titles that a client certificate may use."""

    subject: Subject = Field(description="attributes in the subject of the client certificate")
    calling_ae_titles: tuple[AeTitle, ...] = Field(
        min_length=1, description="calling AE titles that such a certificate may use"
    )


class Tls(Section):
    """`[tls]`: associations over TLS."""

    certificate: FilePath = Field(
        description="file of the certificate of this service and the certificates between it and the root, PEM"
    )
    private_key: FilePath = Field(description="file of the private key of the certificate, PEM, not encrypted")
    client_ca: FilePath | None = Field(
        None, description="file of the authorities that may issue client certificates, PEM"
    )
    client_auth: Literal["required", "optional", "none"] = Field(
        "required", description="whether a client needs a certificate"
    )
    crl: FilePath | None = Field(
        None, description="file of revocation lists, PEM, one for each authority that issues client certificates"
    )
    port: Port | None = Field(
        None, description="TCP port for TLS beside dicom_store_scp.port; without it that port takes TLS only"
    )
    clients: tuple[TlsClient, ...] = Field(
        (), description="client certificates and their AE titles; where there are any, no other certificate is accepted"
    )


class UserIdentity(Section):
    """`[user_identity]`: user name and passcode are required of every association, over TLS only."""

    users: FilePath = Field(description="file of users: lines that `storescpd passcode` prints")


class Audit(Section):
    """`[audit]`: DICOM audit messages (PS3.15 A.5) in syslog (RFC 5424)."""

    destination: AuditDestination = Field(
        description="where audit messages go: `tls://HOST:PORT`, `tcp://HOST:PORT` or `file:PATH`"
    )
    source_id: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        "storescp", description="AuditSourceID of the messages"
    )
    ca_certificate: FilePath | None = Field(
        None,
        description="file of the authorities that may issue the certificate of a TLS destination, PEM; without it "
        "those of the system",
    )
    client_certificate: FilePath | None = Field(
        None, description="file of the client certificate and its private key, PEM, for a TLS destination that asks"
    )
    max_queued: PositiveCount = Field(
        10000, description="maximum number of messages that are kept while the destination cannot be reached"
    )


class Http(Section):
    """`[http]`: status page, probes and metrics."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8042, description="TCP port to listen on; 0: any free port, which is printed")
    token: SecretStr | None = Field(
        None, description="bearer token that every path but /livez and /readyz asks for; without it none does"
    )
    show_patient_data: bool = Field(False, description="whether the status page shows patient IDs and pictures")
    allowed_hosts: tuple[HostName, ...] = Field(
        (),
        description="host names that the status page answers to, besides addresses, localhost and the names of the "
        "machine",
    )


class Transcoding(Section):
    """`[transcoding]`: what is transcoded, and the processes that do it."""

    viewer_transfer_syntaxes: tuple[Uid, ...] = Field(
        VIEWER_TRANSFER_SYNTAXES,
        description="UIDs of the transfer syntaxes that viewers can read; instances in any other are transcoded",
    )
    target: Target = Field(
        "1.2.840.10008.1.2.1", description="UID of the transfer syntax that instances are transcoded to"
    )
    workers: PositiveCount | None = Field(
        None,
        description="maximum number of processes; without it one for each processor that the service may use. There "
        "are fewer where a memory limit has no room for them beside the service",
    )
    worker_memory_bytes: Annotated[int, Field(ge=LEAST_WORKER_BYTES, le=MOST), BYTES] = Field(
        2 << 30,
        description="maximum bytes of memory of each process; lowered where a memory limit has no room for one",
    )
    timeout: Seconds = Field(
        60.0, description="how long a process may take for one frame before it is ended, in seconds"
    )
    instance_timeout: Seconds = Field(
        300.0,
        description="how long a process may take for all frames of one instance before it is ended and the original is "
        "stored as received, in seconds; 2 GiB of JPEG 2000, the slowest codec, take one core about 110 s",
    )
    max_wait: Seconds = Field(
        20.0,
        description="how long an instance waits for a free process before it is stored as received, in seconds; below "
        "the time that senders wait for an answer, often 30 s",
    )


class Outbox(Section):
    """`[outbox]`: the durable queue of records."""

    max_rows: PositiveCount = Field(
        1_000_000, description="maximum number of records that wait; beyond it no instance is accepted"
    )
    max_bytes: PositiveSize = Field(
        2 << 30, description="maximum bytes of the records that wait; beyond it no instance is accepted"
    )
    keep_delivered: Annotated[float, Field(gt=0, le=31536000), SECONDS] = Field(
        604800.0, description="how long the JSON text of a delivered record is kept, in seconds"
    )


class Service(Section):
    """`[service]`: its name among several, and how long it takes to stop."""

    node_id: NodeId | None = Field(
        None, description="name of this node in records (`worker_node_id`); without it the name of the host"
    )

    drain_timeout: Seconds = Field(
        30.0, description="how long associations may take to finish when the service stops, in seconds"
    )
    publish_timeout: Seconds = Field(
        10.0, description="how long records may take to be published when the service stops, in seconds"
    )

    @property
    def node_name(self) -> str:
        """The name of this node in records."""
        return self.node_id or socket.gethostname()[:_NODE_CHARACTERS]


class Limits(Section):
    """`[limits]`: how much a sender may ask of the service."""

    max_instance_bytes: PositiveSize = Field(8 << 30, description="maximum bytes of a data set")
    max_decoded_bytes: PositiveSize = Field(2 << 30, description="maximum bytes of a data set when inflated or decoded")
    max_elements: PositiveCount = Field(
        1 << 24, description="maximum number of elements, items and fragments in a data set"
    )
    nesting: Annotated[int, Field(ge=1, le=256)] = Field(
        64, description="maximum number of sequences inside each other in a data set"
    )
    max_connections: PositiveCount = Field(2000, description="maximum number of connections at once")
    max_connections_per_address: PositiveCount = Field(
        256, description="maximum number of connections at once from one address"
    )
    max_associations_per_address: PositiveCount | None = Field(
        None, description="maximum number of associations at once from one address; without it no maximum"
    )
    max_associations_per_calling_ae: PositiveCount | None = Field(
        None, description="maximum number of associations at once from one calling AE title; without it no maximum"
    )
    request_timeout: Seconds = Field(
        10.0,
        description="how long a sender may take for its A-ASSOCIATE-RQ, and for each PDU beyond the time that min_rate "
        "gives it, in seconds",
    )
    handshake_timeout: Seconds = Field(5.0, description="how long the TLS handshake may take, in seconds")
    idle_timeout: Seconds = Field(
        60.0, description="how long an association may be without a request before it is aborted, in seconds"
    )
    min_rate: Annotated[int, Field(ge=1, le=(1 << 32) - 1)] = Field(
        1024, description="minimum rate at which a PDU must arrive, in bytes per second"
    )
    max_pdu_tolerated: Annotated[int, Field(ge=131072, le=1 << 28), BYTES] = Field(
        1 << 20,
        description="maximum bytes of an A-ASSOCIATE-RQ and, unless dicom_store_scp.strict, of a P-DATA-TF PDU that is "
        "taken with a warning",
    )


class Log(Section):
    """`[log]`: the log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is written")
    format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="form of a line: `json`, `console` (for people), or `auto`: console on a terminal, else JSON",
    )


class Settings(Section):
    """The whole configuration."""

    dicom_store_scp: DicomStoreScp = Field(default_factory=lambda: DicomStoreScp.model_validate({}))
    dicom_license_server: DicomLicenseServer | None = None
    storage: Storage = Field(default_factory=lambda: Storage.model_validate({}))
    message_queue: MessageQueue = Field(default_factory=lambda: MessageQueue.model_validate({}))
    json_lines: JsonLines = Field(default_factory=lambda: JsonLines.model_validate({}))
    kafka: Kafka | None = None
    index: Index = Field(default_factory=lambda: Index.model_validate({}))
    events: Events = Field(default_factory=lambda: Events.model_validate({}))
    tenants: Tenants = Field(default_factory=lambda: Tenants.model_validate({}))
    tls: Tls | None = None
    user_identity: UserIdentity | None = None
    audit: Audit | None = None
    http: Http | None = None
    transcoding: Transcoding = Field(default_factory=lambda: Transcoding.model_validate({}))
    outbox: Outbox = Field(default_factory=lambda: Outbox.model_validate({}))
    service: Service = Field(default_factory=lambda: Service.model_validate({}))
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    log: Log = Field(default_factory=lambda: Log.model_validate({}))


# Names that stay valid beside those above: of a section, and of keys, some of which were in another section.
OTHER_SECTION_NAMES = {"local_storage": "storage"}
OTHER_KEY_NAMES: dict[tuple[str, ...], tuple[str, str]] = {
    ("local_storage", "dicm_store_path"): ("storage", "root"),
    ("dicom_store_scp", "unsupported_ts_change_to"): ("transcoding", "target"),
    ("dicom_store_scp", "cornerstonejs_supported_transfer_syntax"): ("transcoding", "viewer_transfer_syntaxes"),
    ("message_queue", "topic_log"): ("message_queue", "topic_dicom_receive"),
}
