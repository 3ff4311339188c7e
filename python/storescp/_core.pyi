"""The Rust core. Every call releases the GIL; `storescp.errors.CoreError` and `CoreBug` are raised."""

from os import PathLike
from pathlib import Path
from typing import Any, final

__all__ = [
    "IMPLEMENTATION_CLASS_UID",
    "IMPLEMENTATION_VERSION_NAME",
    "MOST_NAMED_REFUSALS",
    "NO_SYNTAX",
    "PROXY_HEADER_ABSENT",
    "PROXY_HEADER_CUT",
    "PROXY_HEADER_LATE",
    "PROXY_HEADER_SECOND",
    "PROXY_HEADER_UNEXPECTED",
    "WORKER_ENVIRONMENT",
    "Admission",
    "Answer",
    "Answers",
    "AssociationSummary",
    "CleanRequest",
    "ClientTls",
    "Connection",
    "Desk",
    "Engine",
    "Gate",
    "InstanceFact",
    "LiveAssociation",
    "OutboxRow",
    "Place",
    "RecentInstance",
    "Recovery",
    "ScanResult",
    "Sender",
    "Served",
    "StartUp",
    "StorageState",
    "StoredRecords",
    "Tls",
    "Transcoder",
    "__version__",
    "anomalies",
    "begins_proxy_header",
    "build_info",
    "character_sets",
    "cipher_suites",
    "clean_request",
    "description_digest",
    "examine_file",
    "is_record_attribute",
    "lock_down",
    "other_character_sets",
    "outbox_migrations",
    "parse_proxy_header",
    "read_journal",
    "read_record",
    "read_title",
    "readable_values",
    "refusals",
    "remove_journal",
    "request_oddities",
    "scan",
    "thumbnail",
    "title_oddities",
    "transcode",
    "transcode_plan",
    "transcode_worker",
    "transfer_syntaxes",
]

__version__: str
IMPLEMENTATION_CLASS_UID: str
IMPLEMENTATION_VERSION_NAME: str
MOST_NAMED_REFUSALS: int
NO_SYNTAX: str
PROXY_HEADER_ABSENT: str
PROXY_HEADER_CUT: str
PROXY_HEADER_LATE: str
PROXY_HEADER_SECOND: str
PROXY_HEADER_UNEXPECTED: str
WORKER_ENVIRONMENT: list[str]

def clean_request(pdu: bytes) -> CleanRequest: ...
def begins_proxy_header(received: bytes) -> bool: ...
def parse_proxy_header(received: bytes) -> tuple[int, tuple[str, int] | None]: ...
def read_title(field: bytes) -> str | None: ...
def request_oddities() -> list[str]: ...
def title_oddities(pdu: bytes) -> list[tuple[str, str, int]]: ...

@final
class CleanRequest:
    @property
    def pdu(self) -> bytes: ...
    @property
    def has_proposals(self) -> bool: ...
    @property
    def oddities(self) -> list[tuple[str, str, int]]: ...

@final
class Tls:
    def __new__(
        cls,
        certificate: PathLike[str],
        private_key: PathLike[str],
        client_ca: PathLike[str] | None,
        client_auth: str,
        crl: PathLike[str] | None,
    ) -> Tls: ...

@final
class Gate:
    def __new__(
        cls,
        max_connections: int,
        max_connections_per_address: int,
        handshake_timeout: float,
        request_timeout: float,
        max_request_bytes: int,
        balancers: list[tuple[str, int]],
        tls: Tls | None,
    ) -> Gate: ...
    def set_tls(self, tls: Tls) -> None: ...
    def listen(self, descriptor: int, encrypted: bool) -> None: ...
    @property
    def connections(self) -> int: ...
    def refused(self) -> list[tuple[str, int]]: ...
    def take_refused(self) -> list[tuple[tuple[str, int] | None, str, str]]: ...
    def is_alive(self) -> bool: ...
    def stop(self) -> None: ...

@final
class Connection:
    @property
    def request(self) -> bytes: ...
    @property
    def peer(self) -> tuple[str, int]: ...
    @property
    def proxy_address(self) -> str | None: ...
    @property
    def tls(self) -> tuple[str, bytes | None] | None: ...
    def refuse(self, pdu: bytes) -> None: ...

@final
class Admission:
    def __new__(cls, rules_json: str) -> Admission: ...
    def close(self, cause: str | None) -> None: ...
    def counts(self) -> tuple[int, int]: ...
    def largest(self) -> tuple[tuple[str, int] | None, tuple[str, int] | None]: ...
    def allows(self, peer: str) -> bool: ...
    def enter(self, peer: str) -> tuple[Place | None, str | None]: ...
    def check_titles(self, called: str, calling: str) -> str | None: ...
    def tenancy(self, called: str, calling: str, peer: str, with_subject: list[int]) -> tuple[str | None, bool]: ...

@final
class Place:
    def enter_calling(self, calling: str) -> str | None: ...
    def leave(self) -> None: ...

@final
class Answer:
    def __new__(
        cls,
        contexts: list[tuple[int, str, str]],
        rejected_contexts: list[tuple[str, int, list[str]]],
        peer_max_pdu_length: int,
        pdu: bytes,
        request: CleanRequest,
    ) -> Answer: ...
    @property
    def contexts(self) -> dict[int, tuple[str, str]]: ...
    @property
    def rejected_contexts(self) -> list[tuple[str, int, list[str]]]: ...
    @property
    def rejected_count(self) -> int: ...
    @property
    def peer_max_pdu_length(self) -> int: ...
    @property
    def oddities(self) -> list[tuple[str, str, int]]: ...
    def pdu_for(self, request: bytes) -> bytes: ...

@final
class Answers:
    def __new__(cls) -> Answers: ...
    def find(self, request: bytes) -> Answer | None: ...
    def remember(self, request: bytes, answer: Answer) -> None: ...

@final
class Served:
    summary: AssociationSummary
    peer: tuple[str, int]
    proxy_address: str | None
    calling_ae_title: str
    called_ae_title: str
    tenant: str | None
    rejected_contexts: int
    oddities: list[tuple[str, str, int]]

@final
class Desk:
    def __new__(cls, gate: Gate, admission: Admission, answers: Answers, serves: bool) -> Desk: ...
    @property
    def waiting(self) -> int: ...
    def next(self, engine: Engine, timeout: float, may_be_last: bool) -> tuple[list[Served], Connection | None]: ...

@final
class AssociationSummary:
    association: int
    outcome: str
    reason: str
    statuses: list[tuple[int, int]]
    identical: int
    kept: int
    replaced: int
    tenants: list[str]
    failures: list[tuple[int, str, int]]
    transcodes: list[tuple[str, str, str, int]]
    transcode_failures: list[tuple[str, int]]
    anomalies: list[tuple[str, int]]
    quarantined: list[str]
    transfers: list[tuple[str, str, str, str | None, list[tuple[str, int]]]]
    refused: int
    echoes: int
    received_bytes: int
    oversized_pdus: int
    seconds: float

@final
class StartUp:
    rows_kept: int
    rows_dropped: int
    temporary_files: int
    quarantined: list[str]
    quarantined_count: int
    missing: list[str]
    missing_count: int
    undecided: list[tuple[str, str]]
    undecided_count: int
    unusable: list[tuple[str, str]]
    unusable_count: int

@final
class Recovery:
    files: int
    recorded: int
    left: int
    missing: list[str]
    missing_count: int
    changed: list[str]
    changed_count: int
    unreadable: list[tuple[str, str]]
    unreadable_count: int

@final
class StorageState:
    quarantined: int
    undecided: int
    changed: int
    unreadable: int
    missing: int
    replaced_files: int
    replaced_bytes: int
    replaced_max_bytes: int
    replaced_total: int
    damaged: int
    damaged_bytes: int
    damaged_max_bytes: int
    damaged_since: float | None

@final
class InstanceFact:
    association: int
    message_id: int
    status: int
    comment: str
    sop_instance_uid: str
    bytes: int
    commit_seconds: float
    is_named: bool
    address: str
    calling_ae_title: str
    tenant_value: str | None
    tenant: str | None
    outcome: str

@final
class LiveAssociation:
    association: int
    address: str
    calling_ae_title: str
    called_ae_title: str
    tenant: str | None
    seconds: float
    bytes: int
    stored: int
    refused: int

@final
class RecentInstance:
    number: int
    at: float
    association: int
    tenant: str
    status: int
    comment: str
    tenant_value: str | None
    modality: str
    sop_class_uid: str
    patient_id: str
    bytes: int
    frames: int
    received_as: str
    transcoded_to: str | None
    transcode_failure: str | None
    anomalies: list[str]
    commit_seconds: float
    file: Path | None

@final
class OutboxRow:
    id: int
    ready: int
    trace_id: str
    key: str
    payload: bytes

@final
class Engine:
    def __new__(cls, config_json: str) -> Engine: ...
    def receive(
        self,
        connection: Connection,
        answer: Answer,
        place: Place,
        calling_ae_title: str,
        called_ae_title: str,
        address: str,
        tenant: str | None,
        tenant_by_rule: bool,
    ) -> AssociationSummary: ...
    def ingest(
        self,
        dataset: bytes,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax: str,
        calling_ae_title: str,
        called_ae_title: str,
        address: str,
        tenant: str | None,
    ) -> tuple[int, str]: ...
    def unavailable(self) -> str | None: ...
    def start_up(self) -> StartUp: ...
    def storage_state(self) -> StorageState: ...
    def reconsider(self) -> tuple[int, int, list[str], int]: ...
    def sweep(self) -> tuple[int, list[tuple[str, str]]]: ...
    def outbox_is_alive(self) -> bool: ...
    def damage(self) -> tuple[str, str, int] | None: ...
    def recover(self) -> Recovery | None: ...
    def missing_protections(self) -> list[str] | None: ...
    def stop_recovery(self) -> None: ...
    def republish_wished(self, most: int) -> list[tuple[str, str | None]]: ...
    def retry(self, root: str | PathLike[str], name: str, tenant: str | None, by_rule: bool) -> str | None: ...
    def transcode_stored(self, root: str | PathLike[str], path: str) -> str | None: ...
    def retry_wished(self, most: int) -> list[tuple[bool, str, str | None]]: ...
    def counters(self) -> tuple[int, list[tuple[int, str, int]]]: ...
    def transcodes(self) -> list[tuple[str, str, str, int]]: ...
    def anomalies(self) -> list[tuple[str, int]]: ...
    def quotas(self) -> list[tuple[str, int, int]]: ...
    def stages(self) -> list[tuple[str, list[tuple[float, int]], float]]: ...
    def free_bytes(self) -> int: ...
    def associations(self) -> list[LiveAssociation]: ...
    def watch_instances(self) -> None: ...
    def recent_instances(self, failed: bool) -> list[RecentInstance]: ...
    def enable_events(self, of_all: bool) -> None: ...
    def events(self, timeout: float) -> tuple[list[InstanceFact], int]: ...
    def measure_tenants(self) -> list[tuple[str, str]]: ...
    def abort_all(self) -> None: ...
    def outbox_wait(self, after: int, timeout: float) -> int: ...
    def outbox_stop_waiting(self) -> None: ...
    def outbox_claim(self, topic_number: int, after: int, most: int) -> list[OutboxRow]: ...
    def outbox_done(self, topic_number: int, ids: list[int]) -> None: ...
    def outbox_flush(self) -> None: ...
    def outbox_fail(self, topic_number: int, reason: str) -> None: ...
    def outbox_reject(self, topic_number: int, rows: list[tuple[int, str]]) -> None: ...
    def outbox_adopt_retries(self) -> int: ...
    def outbox_prune(self, before: int, most: int) -> int: ...
    def outbox_backlog(self) -> tuple[int, int, int]: ...
    def outbox_lag(self, topic_number: int) -> tuple[int, int | None, int]: ...
    def close(self) -> None: ...

@final
class ScanResult:
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    study_date: str | None
    accession_number: str | None
    number_of_frames: int
    has_pixel_data: bool
    anomalies: list[str]
    has_odd_pixel_data: bool

@final
class StoredRecords:
    def __new__(cls, attributes: list[str], node_id: str) -> StoredRecords: ...
    def record(self, path: str | PathLike[str], relative: str) -> str: ...

@final
class ClientTls:
    def __new__(
        cls,
        name: str,
        ca: str | PathLike[str] | None = None,
        certificate: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
    ) -> ClientTls: ...

@final
class Sender:
    def __new__(
        cls,
        host: str,
        port: int,
        calling: str,
        called: str,
        contexts: list[tuple[str, str]],
        timeout: float,
        *,
        connect_timeout: float | None = None,
        tls: ClientTls | None = None,
        user: tuple[str, str | None] | None = None,
    ) -> Sender: ...
    @staticmethod
    def echo_context() -> tuple[str, str]: ...
    @property
    def confirms_user(self) -> bool: ...
    def accepts(self, sop_class: str, transfer_syntax: str) -> bool: ...
    def echo(self) -> tuple[int, float]: ...
    def store_file(
        self, path: str | PathLike[str], sop_class: str, sop_instance: str, transfer_syntax: str
    ) -> tuple[int, str, float]: ...
    def store_many(
        self, sop_class: str, transfer_syntax: str, instances: list[tuple[str, bytes]]
    ) -> list[tuple[int, float]]: ...
    def release(self) -> None: ...

def examine_file(path: str | PathLike[str], tenant: str) -> tuple[int, bytes, str]: ...
def read_record(message: bytes) -> tuple[Any, ...] | str: ...
def description_digest(said: list[str | None]) -> str: ...
def readable_values(dataset: bytes, transfer_syntax: str, tags: list[int]) -> list[bytes | None]: ...
def scan(dataset: bytes, transfer_syntax: str, required_attributes: list[str]) -> ScanResult: ...

@final
class Transcoder:
    def __new__(cls, config_json: str) -> Transcoder: ...
    def transcode_file(
        self,
        source_path: str | PathLike[str],
        offset: int,
        target_path: str | PathLike[str],
        header: bytes,
        source: str,
        target: str,
        max_decoded_bytes: int,
    ) -> tuple[int, int]: ...
    @property
    def live(self) -> int: ...

def transcode(dataset: bytes, source: str, target: str, max_decoded_bytes: int, threads: int = 1) -> bytes: ...
def thumbnail(edge: int, max_frame_bytes: int) -> bytes: ...
def transcode_plan(
    transfer_syntax: str, has_pixel_data: bool, viewer_transfer_syntaxes: set[str], target: str
) -> tuple[str, str]: ...
def lock_down() -> list[str]: ...
def transcode_worker(memory_bytes: int) -> None: ...
def transfer_syntaxes() -> list[tuple[str, str, bool, bool]]: ...
def anomalies() -> list[str]: ...
def is_record_attribute(keyword: str) -> bool: ...
def refusals() -> list[tuple[int, str]]: ...
def character_sets() -> list[str]: ...
def other_character_sets() -> list[str]: ...
def cipher_suites() -> list[str]: ...
def build_info() -> list[tuple[str, str]]: ...
def outbox_migrations() -> list[str]: ...
def read_journal(folder: PathLike[str]) -> list[tuple[str, str, str, str, int, bytes, int]]: ...
def remove_journal(folder: PathLike[str]) -> None: ...
