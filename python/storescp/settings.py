"""The configuration as types: every key, its default and its bounds.

Sections and keys are those of the configuration file; units are in the names or in the comment beside them.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, SecretStr, field_validator

from storescp import _core
from storescp.network.identity import SubjectPattern

TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UID_CHARACTERS, _AE_TITLE_CHARACTERS = 64, 16  # PS3.5 6.2
_ROOT_BYTES = 200
_LAST_PORT = 65535
_KAFKA_PORT = 9092
MOST = (1 << 63) - 1
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
# A lossy target would need a new SOP Instance UID (PS3.3 C.7.6.1.1.5), so the core encodes none.
TARGETS = tuple(uid for uid, _name, _decodes, encodes in _core.transfer_syntaxes() if encodes)


def _uid(text: str) -> str:
    if len(text) > _UID_CHARACTERS or not _UID.fullmatch(text):
        raise ValueError("a UID: digits and dots, at most 64 characters")
    return text


def _target(text: str) -> str:
    if text not in TARGETS:
        raise ValueError("a lossless transfer syntax that can be encoded: " + ", ".join(TARGETS))
    return text


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


Uid = Annotated[str, AfterValidator(_uid)]
Target = Annotated[str, AfterValidator(_target)]
AeTitle = Annotated[str, AfterValidator(ae_title)]
Keyword = Annotated[str, AfterValidator(_keyword)]
TenantId = Annotated[str, AfterValidator(_tenant_id)]
OptionalTenantId = Annotated[str, AfterValidator(_optional_tenant_id)]
Subject = Annotated[str, AfterValidator(_subject)]
Brokers = Annotated[str, AfterValidator(_brokers)]
Network = Annotated[str, AfterValidator(_network)]
FilePath = Annotated[Path, AfterValidator(_path)]
StorageRoot = Annotated[FilePath, AfterValidator(_root)]
Oid = Annotated[str, AfterValidator(_oid)]
AuditDestination = Annotated[str, AfterValidator(_audit_destination)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
# What the core counts with.
PositiveCount = Annotated[int, Field(ge=1, le=MOST)]


class Section(BaseModel):
    """A table of the configuration file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, str | Path) and not is_utf8(str(part)):
                raise ValueError("text in UTF-8")
        return value


class DicomStoreScp(Section):
    """`[dicom_store_scp]`."""

    host: str | None = Field(None, description="bind address; 0.0.0.0, or 127.0.0.1 in evaluation mode")
    port: Port = Field(11111, description="port; 0: any free one")
    ae_title: AeTitle = Field("STORE-SCP", description="our AE title")
    cornerstonejs_supported_transfer_syntax: tuple[Uid, ...] = Field(
        VIEWER_TRANSFER_SYNTAXES, description="UIDs of what viewers read; everything else is transcoded"
    )
    unsupported_ts_change_to: Target = Field("1.2.840.10008.1.2.1", description="UID of what it is transcoded to")
    max_pdu_length: Annotated[int, Field(ge=4096, le=131072)] = Field(16384, description="announced maximum PDU length")
    strict: bool = Field(False, description="abort associations whose P-DATA is longer than announced")
    promiscuous: bool = Field(False, description="accept unknown and private SOP classes")
    uncompressed_only: bool = Field(False, description="accept native transfer syntaxes only")
    non_blocking: bool = Field(True, description="many associations at once, or one at a time")
    max_associations: Annotated[int, Field(ge=1, le=10000)] = Field(100, description="associations at once")
    required_attributes: tuple[Keyword, ...] = Field(
        ("PatientID", "StudyDate"),
        description="keywords of attributes without which an instance is refused, besides the UIDs",
    )
    allowed_called_ae_titles: tuple[AeTitle, ...] = Field(
        (), description="titles that we are called by, besides ae_title and those of the rules; none: any"
    )
    allowed_calling_ae_titles: tuple[AeTitle, ...] = Field((), description="titles that may come in; none: any")
    allowed_peers: tuple[Network, ...] = Field((), description="addresses and networks that may come in; none: any")


class DicomLicenseServer(Section):
    """`[dicom_license_server]`: required, but in evaluation mode."""

    client_id: str = Field(min_length=1, description="whose licence it is")
    license_key: SecretStr = Field(min_length=1, description="the hash code in the certificate")
    client_certificate: FilePath = Field(Path("client.pem"), description="the licence")
    ca_certificate: FilePath = Field(Path("ca.pem"), description="who issued it")
    hash_code_oid: Oid = Field(
        "1.3.6.1.4.15967132172.1", description="the extension of the certificate that holds the hash code"
    )


class LocalStorage(Section):
    """`[local_storage]`."""

    dicm_store_path: StorageRoot = Field(Path("storescp-data"), validate_default=True, description="storage root")
    durability: Literal["full", "data", "none"] = Field(
        "full", description="what is on the disk before success is answered"
    )
    duplicates: Literal["replace", "keep", "reject"] = Field(
        "replace", description="what becomes of another instance with the same UIDs"
    )
    create: bool = Field(
        True,
        description="whether a storage root that is not there is made; false: it must be there with its identity file, "
        "`.outbox/identity`, else exit code 75",
    )
    replaced_retention: Annotated[float, Field(ge=0, le=3153600000.0, allow_inf_nan=False)] = Field(
        2592000.0, description="how long a file that was replaced stays in .replaced/, in seconds; 0: it is not kept"
    )
    replaced_max_bytes: PositiveCount | None = Field(
        None, description="bytes that .replaced/ may hold; by default a tenth of the disk"
    )
    min_free_bytes: Annotated[int, Field(ge=0, le=MOST)] = Field(
        1 << 30, description="below so much free space nothing is accepted"
    )
    spool_memory_bytes: Annotated[int, Field(ge=4096, le=1 << 28)] = Field(
        1 << 20, description="memory of an instance on its way; what is larger goes to a temporary file"
    )


class MessageQueue(Section):
    """`[message_queue]`."""

    topic_main: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "storage_queue", description="topic for whoever builds patients, studies and series"
    )
    topic_dicom_receive: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "log_queue",
        validation_alias=AliasChoices("topic_dicom_receive", "topic_log"),
        description="topic of the acquisition log; also topic_log",
    )


class JsonLines(Section):
    """`[json_lines]`: records without `[kafka]`."""

    max_bytes: Annotated[int, Field(ge=0)] = Field(
        0, description="size in bytes from which a file is renamed and a new one begun; 0: never"
    )


class Kafka(Section):
    """`[kafka]`."""

    brokers: Brokers = Field(description="host:port, several with commas")
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "storescp", description="name in the broker's logs and quotas"
    )
    compression_codec: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field("none", description="of batches")
    linger_ms: Annotated[int, Field(ge=0, le=60000)] = Field(
        5, description="how long the first record after a pause waits for company"
    )
    batch_num_messages: Annotated[int, Field(ge=1, le=100000)] = Field(1000, description="records in a batch")
    batch_bytes: Annotated[int, Field(ge=1024, le=1 << 26, description="before compression")] = 1 << 19
    request_timeout: Seconds = Field(10.0, description="seconds until a broker that does not answer is asked again")
    delivery_timeout: Seconds = Field(120.0, description="seconds until a producer that gets nowhere is replaced")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="with or without TLS, with or without a login"
    )
    ssl_cafile: FilePath | None = Field(
        None, description="authorities that the broker's certificate may come from; without it the system's"
    )
    ssl_certfile: FilePath | None = Field(None, description="our certificate, where the broker wants one")
    ssl_keyfile: FilePath | None = Field(None, description="its key")
    ssl_key_password: SecretStr | None = Field(None, description="of that key")
    ssl_check_hostname: bool = Field(True, description="whether the broker's certificate must name its host")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(None, description="how to log in")
    sasl_username: str | None = Field(None, description="login")
    sasl_password: SecretStr | None = Field(None, description="login")


class Index(Section):
    """`[index]`: what `storescpd index` keeps up to date."""

    database: SecretStr = Field(SecretStr("sqlite:///storescp-index.sqlite"), description="SQLAlchemy URL")
    group_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "storescp-index", description="consumer group; workers with the same one share the partitions"
    )
    max_records: Annotated[int, Field(ge=1, le=10000)] = Field(1000, description="for each transaction")


class TenantRule(Section):
    """`[[tenants.rules]]`: every given field must match."""

    tenant_id: TenantId = Field(description="whose the instances are")
    called_ae: AeTitle | None = Field(None, description="the called AE title")
    calling_ae: AeTitle | None = Field(None, description="the calling AE title")
    source: Network | None = Field(None, description="address or network of the sender")
    tls_subject: Subject | None = Field(None, description="attributes that the subject of the certificate has")


class TenantSettings(Section):
    """`[[tenants.settings]]`."""

    tenant_id: TenantId = Field(description="whose settings these are")
    quota_bytes: PositiveCount | None = Field(None, description="stored files")
    max_in_flight: PositiveCount | None = Field(None, description="instances on their way at once")
    storage_root: StorageRoot | None = Field(None, description="a root of its own")
    required_attributes: tuple[Keyword, ...] | None = Field(None, description="instead of the common ones")


class Tenants(Section):
    """`[tenants]`."""

    default: OptionalTenantId = Field("1234567890", description="tenant of what no rule matches; empty: it is refused")
    rules: tuple[TenantRule, ...] = Field((), description="[[tenants.rules]]")
    settings: tuple[TenantSettings, ...] = Field((), description="[[tenants.settings]]")
    from_private_element: bool = Field(
        False, description="take the tenant from a private element where no rule matches"
    )
    known: tuple[TenantId, ...] = Field((), description="tenants that the private element may name")
    private_group: Annotated[int, Field(ge=0x0009, le=0xFFFD)] = Field(0x1211, description="group of that element")
    private_element: Annotated[int, Field(ge=0x1000, le=0xFFFF)] = Field(0x1217, description="its number")


class TlsClient(Section):
    """`[[tls.clients]]`: the AE titles that a certificate may use."""

    subject: Subject = Field(description="attributes that the subject has")
    calling_ae_titles: tuple[AeTitle, ...] = Field(min_length=1, description="titles that it may use")


class Tls(Section):
    """`[tls]`."""

    certificate: FilePath = Field(description="ours and those between it and the root")
    private_key: FilePath = Field(description="its key, PEM, not encrypted")
    client_ca: FilePath | None = Field(None, description="authorities that client certificates may come from")
    client_auth: Literal["required", "optional", "none"] = Field(
        "required", description="whether clients need a certificate"
    )
    crl: FilePath | None = Field(None, description="a list for each authority that issues client certificates")
    port: Port | None = Field(None, description="beside dicom_store_scp.port; without it TLS takes that port")
    clients: tuple[TlsClient, ...] = Field((), description="where there are any, nobody else comes in by TLS")


class UserIdentity(Section):
    """`[user_identity]`: username and passcode, asked for on every association; over TLS only."""

    users: FilePath = Field(description="lines of `storescpd passcode`")


class Audit(Section):
    """`[audit]`: DICOM audit messages (PS3.15 A.5) in syslog (RFC 5424)."""

    destination: AuditDestination = Field(description="tls://HOST:PORT, tcp://HOST:PORT or file:PATH")
    source_id: Annotated[str, Field(min_length=1, max_length=64)] = Field("storescp", description="AuditSourceID")
    ca_certificate: FilePath | None = Field(None, description="of a TLS destination; without it the system's")
    client_certificate: FilePath | None = Field(None, description="certificate and key that a TLS destination asks for")
    max_queued: PositiveCount = Field(10000, description="messages kept while the destination is unreachable")


class Http(Section):
    """`[http]`."""

    host: str = Field("127.0.0.1", description="bind address")
    port: Port = Field(8042, description="port; 0: any free one")
    token: SecretStr | None = Field(None, description="bearer token that everything but /livez and /readyz asks for")
    show_patient_data: bool = Field(False, description="patient IDs and pictures on the status page")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="host names that the status page answers to besides addresses, localhost and the machine's own"
    )


class Transcoding(Section):
    """`[transcoding]`: the processes that transcode what viewers cannot read."""

    workers: PositiveCount | None = Field(None, description="processes at most; as many as there are cores")
    worker_memory_bytes: Annotated[int, Field(ge=256 << 20, le=MOST)] = Field(
        2 << 30, description="each one's own memory"
    )
    timeout: Seconds = Field(60.0, description="seconds without a finished frame after which one is ended")


class Outbox(Section):
    """`[outbox]`."""

    max_rows: PositiveCount = Field(1_000_000, description="records that may wait; beyond it nothing is accepted")
    max_bytes: PositiveCount = Field(2 << 30, description="the same in bytes")
    keep_delivered: Annotated[float, Field(gt=0, le=31536000)] = Field(
        604800.0, description="how long the JSON text of a delivered record is kept, in seconds"
    )


class Service(Section):
    """`[service]`: seconds."""

    drain_timeout: Seconds = Field(30.0, description="for associations to finish when it stops")
    publish_timeout: Seconds = Field(10.0, description="for records to be published when it stops")


class Limits(Section):
    """`[limits]`: what a peer may make us do. Times in seconds, rates in bytes a second."""

    max_instance_bytes: PositiveCount = Field(8 << 30, description="a data set")
    max_decoded_bytes: PositiveCount = Field(2 << 30, description="a data set that is inflated or decoded")
    max_elements: PositiveCount = Field(1 << 24, description="elements, items and fragments of a data set")
    nesting: Annotated[int, Field(ge=1, le=256)] = Field(64, description="sequences in sequences")
    max_connections: PositiveCount = Field(2000, description="connections at once")
    max_connections_per_address: PositiveCount = Field(256, description="of one address")
    max_associations_per_address: PositiveCount | None = Field(None, description="associations at once of one address")
    max_associations_per_calling_ae: PositiveCount | None = Field(
        None, description="associations at once of one calling AE title"
    )
    request_timeout: Seconds = Field(
        10.0, description="until the A-ASSOCIATE-RQ is there; also the fixed part of the time for a PDU"
    )
    handshake_timeout: Seconds = Field(5.0, description="TLS handshake")
    idle_timeout: Seconds = Field(60.0, description="an association without a request")
    min_rate: Annotated[int, Field(ge=1, le=(1 << 32) - 1)] = Field(
        1024, description="bytes a second at which a PDU must come in"
    )
    max_pdu_tolerated: Annotated[int, Field(ge=131072, le=1 << 28)] = Field(
        1 << 20, description="longest A-ASSOCIATE-RQ and, unless strict, P-DATA-TF"
    )


class Log(Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is written")
    format: Literal["json", "console"] = Field("json", description="JSON lines, or lines for people")


class Settings(Section):
    """The whole configuration."""

    dicom_store_scp: DicomStoreScp = Field(default_factory=lambda: DicomStoreScp.model_validate({}))
    dicom_license_server: DicomLicenseServer | None = None
    local_storage: LocalStorage = Field(
        default_factory=lambda: LocalStorage.model_validate({"dicm_store_path": "storescp-data"})
    )
    message_queue: MessageQueue = Field(default_factory=lambda: MessageQueue.model_validate({}))
    json_lines: JsonLines = Field(default_factory=lambda: JsonLines.model_validate({}))
    kafka: Kafka | None = None
    index: Index = Field(default_factory=lambda: Index.model_validate({}))
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
