"""wado-storescp's `[kafka]` section: the names of librdkafka, with dots or underscores.

Source: librdkafka's CONFIGURATION.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "bootstrap_servers": "brokers",
    "metadata_broker_list": "brokers",
    "queue_buffering_max_ms": "linger_ms",
    "batch_size": "batch_bytes",
    "message_max_bytes": "batch_bytes",
    "compression_type": "compression_codec",
    "message_timeout_ms": "delivery_timeout",
    "delivery_timeout_ms": "delivery_timeout",
    "request_timeout_ms": "request_timeout",
    "socket_timeout_ms": "request_timeout",
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_key_location": "ssl_keyfile",
    "sasl_mechanisms": "sasl_mechanism",
}
_MILLISECONDS = frozenset({"delivery_timeout", "request_timeout"})
# What they would change is not a choice here.
_SETTLED = {
    "acks": "always all",
    "request_required_acks": "always all",
    "enable_idempotence": "always on",
    "retries": "the outbox tries again until a topic has the record",
    "message_send_max_retries": "the outbox tries again until a topic has the record",
    "retry_backoff_ms": "the outbox decides",
    "queue_buffering_max_messages": "the outbox is the queue: [outbox] max_rows",
    "queue_buffering_max_kbytes": "the outbox is the queue: [outbox] max_bytes",
    "max_in_flight_requests_per_connection": "one batch for each partition",
}


def adopt(table: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    """The section with our names and units; a key of ours beats one of theirs."""
    adopted: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace(".", "_")
        if name in _SETTLED:
            warnings.append(f"kafka.{key} has no effect: {_SETTLED[name]}")
        elif name in _NAMES:
            target = _NAMES[name]
            adopted[target] = _seconds(value) if target in _MILLISECONDS else value
        else:
            own[name] = value
    adopted |= own
    brokers = adopted.get("brokers")
    if isinstance(brokers, list) and all(isinstance(broker, str) for broker in brokers):
        adopted["brokers"] = ",".join(brokers)
    for name in ("security_protocol", "sasl_mechanism"):
        if isinstance(adopted.get(name), str):
            adopted[name] = adopted[name].upper()
    if isinstance(adopted.get("linger_ms"), float):
        adopted["linger_ms"] = round(adopted["linger_ms"])
    return adopted


def _seconds(milliseconds: Any) -> Any:
    """A duration with a unit says by itself how long it is."""
    if isinstance(milliseconds, str) and milliseconds.strip().isdecimal():
        return int(milliseconds) / 1000
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else milliseconds
