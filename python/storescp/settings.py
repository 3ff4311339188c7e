"""The configuration as types: every key, its default and its bounds.

Sections and keys are those of the configuration file; units are in the names or in the comment beside them.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, SecretStr

from storescp import _core
from storescp.network.identity import SubjectPattern

TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UID_CHARACTERS, _AE_TITLE_CHARACTERS = 64, 16  # PS3.5 6.2
_ROOT_BYTES = 200
_LAST_PORT = 65535
_KAFKA_PORT = 9092
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


def _ae_title(text: str) -> str:
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


def _root(path: Path) -> Path:
    absolute = path.expanduser().absolute()
    if len(str(absolute).encode()) > _ROOT_BYTES:
        raise ValueError("a path of at most 200 bytes")
    return absolute


Uid = Annotated[str, AfterValidator(_uid)]
Target = Annotated[str, AfterValidator(_target)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Keyword = Annotated[str, AfterValidator(_keyword)]
TenantId = Annotated[str, AfterValidator(_tenant_id)]
OptionalTenantId = Annotated[str, AfterValidator(_optional_tenant_id)]
Subject = Annotated[str, AfterValidator(_subject)]
Brokers = Annotated[str, AfterValidator(_brokers)]
Network = Annotated[str, AfterValidator(_network)]
StorageRoot = Annotated[Path, AfterValidator(_root)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
PositiveCount = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the configuration file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class DicomStoreScp(Section):
    """`[dicom_store_scp]`."""

    host: str | None = Field(None, description="bind address; 0.0.0.0, or 127.0.0.1 in evaluation mode")
    port: Port = 11111
    ae_title: AeTitle = "STORE-SCP"
    cornerstonejs_supported_transfer_syntax: tuple[Uid, ...] = VIEWER_TRANSFER_SYNTAXES
    unsupported_ts_change_to: Target = "1.2.840.10008.1.2.1"
    max_pdu_length: Annotated[int, Field(ge=4096, le=131072)] = 16384
    strict: bool = False
    promiscuous: bool = False
    uncompressed_only: bool = False
    non_blocking: bool = True
    max_associations: Annotated[int, Field(ge=1, le=10000)] = 100
    required_attributes: tuple[Keyword, ...] = ("PatientID", "StudyDate")
    allowed_called_ae_titles: tuple[AeTitle, ...] = ()
    allowed_calling_ae_titles: tuple[AeTitle, ...] = ()
    allowed_peers: tuple[Network, ...] = ()


class DicomLicenseServer(Section):
    """`[dicom_license_server]`."""

    client_id: str = Field(min_length=1)
    license_key: SecretStr = Field(min_length=1)
    client_certificate: Path = Path("client.pem")
    ca_certificate: Path = Path("ca.pem")
    hash_code_oid: Annotated[str, Field(pattern=r"^[0-2](\.[0-9]+)+$")] = "1.3.6.1.4.15967132172.1"


class LocalStorage(Section):
    """`[local_storage]`."""

    dicm_store_path: StorageRoot = Path("storescp-data")
    durability: Literal["full", "data", "none"] = "full"
    duplicates: Literal["replace", "keep", "reject"] = "replace"
    min_free_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    spool_memory_bytes: Annotated[int, Field(ge=4096, le=1 << 28)] = 1 << 20


class MessageQueue(Section):
    """`[message_queue]`."""

    topic_main: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = "storage_queue"
    topic_dicom_receive: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = Field(
        "log_queue", validation_alias=AliasChoices("topic_dicom_receive", "topic_log")
    )


class Kafka(Section):
    """`[kafka]`."""

    brokers: Brokers
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = "storescp"
    compression_codec: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    linger_ms: Annotated[int, Field(ge=0, le=60000)] = 5
    batch_num_messages: Annotated[int, Field(ge=1, le=100000)] = 1000
    batch_bytes: Annotated[int, Field(ge=1024, le=1 << 26, description="before compression")] = 1 << 19
    request_timeout: Seconds = Field(10.0, description="seconds until a broker that does not answer is asked again")
    delivery_timeout: Seconds = Field(120.0, description="seconds until a producer that gets nowhere is replaced")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_key_password: SecretStr | None = None
    ssl_check_hostname: bool = True
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None


class Index(Section):
    """`[index]`: what `storescpd index` keeps up to date."""

    database: SecretStr = Field(SecretStr("sqlite:///storescp-index.sqlite"), description="SQLAlchemy URL")
    group_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = "storescp-index"
    max_records: Annotated[int, Field(ge=1, le=10000)] = Field(1000, description="for each transaction")


class TenantRule(Section):
    """`[[tenants.rules]]`: every given field must match."""

    tenant_id: TenantId
    called_ae: AeTitle | None = None
    calling_ae: AeTitle | None = None
    source: Network | None = None
    tls_subject: Subject | None = None


class TenantSettings(Section):
    """`[[tenants.settings]]`."""

    tenant_id: TenantId
    quota_bytes: PositiveCount | None = None
    max_in_flight: PositiveCount | None = None
    storage_root: StorageRoot | None = None
    required_attributes: tuple[Keyword, ...] | None = None


class Tenants(Section):
    """`[tenants]`."""

    default: OptionalTenantId = "1234567890"
    rules: tuple[TenantRule, ...] = ()
    settings: tuple[TenantSettings, ...] = ()
    from_private_element: bool = False
    known: tuple[TenantId, ...] = ()
    private_group: Annotated[int, Field(ge=0x0009, le=0xFFFD)] = 0x1211
    private_element: Annotated[int, Field(ge=0x1000, le=0xFFFF)] = 0x1217


class TlsClient(Section):
    """`[[tls.clients]]`: the AE titles that a certificate may use."""

    subject: Subject
    calling_ae_titles: tuple[AeTitle, ...] = Field(min_length=1)


class Tls(Section):
    """`[tls]`."""

    certificate: Path = Field(description="ours and those between it and the root")
    private_key: Path
    client_ca: Path | None = None
    client_auth: Literal["required", "optional", "none"] = "required"
    crl: Path | None = Field(None, description="a list for each authority that issues client certificates")
    port: Port | None = Field(None, description="beside dicom_store_scp.port; without it TLS takes that port")
    clients: tuple[TlsClient, ...] = Field((), description="where there are any, nobody else comes in by TLS")


class UserIdentity(Section):
    """`[user_identity]`: username and passcode, asked for on every association; over TLS only."""

    users: Path = Field(description="lines of `storescpd passcode`")


class Audit(Section):
    """`[audit]`: DICOM audit messages (PS3.15 A.5) in syslog (RFC 5424)."""

    destination: Annotated[str, Field(pattern=r"^(tls|tcp)://[^\s/:]+:[0-9]{1,5}$|^file:.+$")] = Field(
        description="tls://HOST:PORT, tcp://HOST:PORT or file:PATH"
    )
    source_id: Annotated[str, Field(min_length=1, max_length=64)] = Field("storescp", description="AuditSourceID")
    ca_certificate: Path | None = Field(None, description="of a TLS destination; without it the system's")
    client_certificate: Path | None = Field(None, description="certificate and key that a TLS destination asks for")
    max_queued: PositiveCount = Field(10000, description="messages kept while the destination is unreachable")


class Http(Section):
    """`[http]`."""

    host: str = "127.0.0.1"
    port: Port = 8042
    token: SecretStr | None = Field(None, description="bearer token that everything but /livez and /readyz asks for")
    show_patient_data: bool = Field(False, description="patient IDs and pictures on the status page")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="host names that the status page answers to besides addresses, localhost and the machine's own"
    )


class Transcoding(Section):
    """`[transcoding]`: the processes that transcode what viewers cannot read."""

    workers: PositiveCount | None = Field(None, description="processes at most; as many as there are cores")
    worker_memory_bytes: Annotated[int, Field(ge=256 << 20)] = Field(2 << 30, description="each one's own memory")
    timeout: Seconds = Field(60.0, description="seconds without a finished frame after which one is ended")


class Outbox(Section):
    """`[outbox]`."""

    max_rows: PositiveCount = 1_000_000
    max_bytes: PositiveCount = 2 << 30
    keep_delivered: Seconds = Field(604800.0, le=31536000.0, description="seconds")


class Service(Section):
    """`[service]`: seconds."""

    drain_timeout: Seconds = 30.0
    publish_timeout: Seconds = 10.0


class Limits(Section):
    """`[limits]`: what a peer may make us do. Times in seconds, rates in bytes a second."""

    max_instance_bytes: PositiveCount = 8 << 30
    max_decoded_bytes: PositiveCount = 2 << 30
    max_elements: PositiveCount = 1 << 24
    nesting: Annotated[int, Field(ge=1, le=256)] = 64
    max_connections: PositiveCount = 2000
    max_connections_per_address: PositiveCount = 256
    max_associations_per_address: PositiveCount | None = None
    max_associations_per_calling_ae: PositiveCount | None = None
    request_timeout: Seconds = 10.0
    handshake_timeout: Seconds = 5.0
    idle_timeout: Seconds = 60.0
    min_rate: PositiveCount = 1024
    max_pdu_tolerated: Annotated[int, Field(ge=131072, le=1 << 28)] = 1 << 20


class Log(Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Settings(Section):
    """The whole configuration."""

    dicom_store_scp: DicomStoreScp = Field(default_factory=lambda: DicomStoreScp.model_validate({}))
    dicom_license_server: DicomLicenseServer | None = None
    local_storage: LocalStorage = Field(
        default_factory=lambda: LocalStorage.model_validate({"dicm_store_path": "storescp-data"})
    )
    message_queue: MessageQueue = Field(default_factory=lambda: MessageQueue.model_validate({}))
    kafka: Kafka | None = None
    index: Index = Field(default_factory=lambda: Index.model_validate({}))
    tenants: Tenants = Tenants()
    tls: Tls | None = None
    user_identity: UserIdentity | None = None
    audit: Audit | None = None
    http: Http | None = None
    transcoding: Transcoding = Field(default_factory=lambda: Transcoding.model_validate({}))
    outbox: Outbox = Field(default_factory=lambda: Outbox.model_validate({}))
    service: Service = Service()
    limits: Limits = Limits()
    log: Log = Log()
