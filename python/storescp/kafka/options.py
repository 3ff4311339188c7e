"""From `[kafka]` to aiokafka's arguments."""

from __future__ import annotations

import ssl
from typing import TypedDict

from storescp.errors import ConfigError, ConfigProblem
from storescp.files import check_readable
from storescp.settings import Kafka

COMPRESSION = {"none": None, "gzip": "gzip", "snappy": "snappy", "lz4": "lz4", "zstd": "zstd"}


class ConnectionOptions(TypedDict):
    """The arguments that aiokafka's producer, consumer and admin client have in common."""

    bootstrap_servers: str
    client_id: str
    request_timeout_ms: int
    security_protocol: str
    ssl_context: ssl.SSLContext | None
    sasl_mechanism: str
    sasl_plain_username: str | None
    sasl_plain_password: str | None


def connection_options(kafka: Kafka) -> ConnectionOptions:
    """The connection.

    Raises:
        ConfigError: a certificate or key cannot be used.
        TemporaryFailure: one cannot be read now.
    """
    return ConnectionOptions(
        bootstrap_servers=kafka.brokers,
        client_id=kafka.client_id,
        request_timeout_ms=round(kafka.request_timeout * 1000),
        security_protocol=kafka.security_protocol,
        ssl_context=ssl_context(kafka) if kafka.security_protocol.endswith("SSL") else None,
        sasl_mechanism=kafka.sasl_mechanism or "PLAIN",
        sasl_plain_username=kafka.sasl_username,
        sasl_plain_password=kafka.sasl_password.get_secret_value() if kafka.sasl_password else None,
    )


def ssl_context(kafka: Kafka) -> ssl.SSLContext:
    """TLS as configured: the system's certificates unless `ssl_cafile` is given; a client certificate for mTLS.

    Raises:
        ConfigError: a file cannot be used.
        TemporaryFailure: a file cannot be read now.
    """
    for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(kafka, key)
        if path is not None:
            check_readable(f"kafka.{key}", path)
    try:
        context = ssl.create_default_context(cafile=str(kafka.ssl_cafile) if kafka.ssl_cafile else None)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("ssl_cafile", kafka.ssl_cafile, "a file of PEM certificates", error) from None
    context.check_hostname = kafka.ssl_check_hostname
    if kafka.ssl_certfile is not None:
        password = kafka.ssl_key_password.get_secret_value() if kafka.ssl_key_password else ""
        try:
            # Without a password the library would ask for one at the terminal.
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, password=lambda: password)
        except (OSError, ssl.SSLError) as error:
            files = f"{kafka.ssl_certfile}, {kafka.ssl_keyfile or 'key in the same file'}"
            raise _unusable("ssl_certfile", files, "a PEM certificate and its key", error) from None
    return context


def _unusable(key: str, value: object, expected: str, error: Exception) -> ConfigError:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return ConfigError(ConfigProblem(f"kafka.{key}", str(value), f"{expected} ({reason})", "configuration"))
