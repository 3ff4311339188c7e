"""Why a broker cannot be talked to, in words that say what to do.

aiokafka raises the same error for a closed port, a wrong certificate and a wrong password. This looks by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl

from storescp.kafka.complaints import COMPLAINTS
from storescp.kafka.options import ConnectionOptions

_PROBE_SECONDS = 3.0
_REFUSAL_SECONDS = 0.5
_RECENT_SECONDS = 60.0
_SILENT = "accepts connections but does not answer"
_SASL_WORDS = ("authentic", "sasl", "credential")


async def explain(options: ConnectionOptions, error: BaseException) -> str:
    """One line for an operator about a connection that could not be made."""
    findings = []
    for broker in options["bootstrap_servers"].split(","):
        host, _, port = broker.strip().rpartition(":")
        number = int(port) if port.isdigit() else 9092
        findings.append(f"{broker.strip()}: {await _look(host.strip('[]'), number, options, error)}")
    return "; ".join(findings)


async def _look(host: str, port: int, options: ConnectionOptions, error: BaseException) -> str:
    try:
        await _connect(host, port, None)
    except TimeoutError:
        return f"does not answer within {_PROBE_SECONDS:g} s"
    except OSError as refused:
        return _words(refused)
    if options["security_protocol"].endswith("SSL"):
        return await _look_for_tls(host, port, options["ssl_context"]) or _by_complaint(error, options)
    try:
        await _connect(host, port, _any_certificate())
    except TimeoutError:
        return _SILENT
    except OSError:
        return _by_complaint(error, options)
    return "speaks TLS: set kafka.security_protocol to SSL or SASL_SSL"


async def _look_for_tls(host: str, port: int, context: ssl.SSLContext | None) -> str | None:
    """Why TLS does not come about, or nothing."""
    try:
        await _connect(host, port, context)
    except TimeoutError:
        return _SILENT
    except ssl.SSLCertVerificationError as refused:
        return f"its certificate is not trusted ({refused.verify_message}): check kafka.ssl_cafile and the host name"
    except (ssl.SSLError, ConnectionError) as refused:
        if isinstance(refused, ssl.SSLError) and "ALERT" in (refused.reason or ""):
            return f"refuses our certificate ({refused.reason}): check kafka.ssl_certfile"
        return "does not speak TLS there: check the port and kafka.security_protocol"
    except OSError as refused:
        return _words(refused)
    return None


async def _connect(host: str, port: int, context: ssl.SSLContext | None) -> None:
    async with asyncio.timeout(_PROBE_SECONDS):
        reader, writer = await asyncio.open_connection(
            host, port, ssl=context, server_hostname=host if context is not None else None
        )
        if context is not None:
            # In TLS 1.3 a client certificate is refused only after the handshake.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFUSAL_SECONDS):
                    await reader.read(1)
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def _any_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _by_complaint(error: BaseException, options: ConnectionOptions) -> str:
    complaint = COMPLAINTS.last(_RECENT_SECONDS)
    text = complaint or str(error) or type(error).__name__
    if "UnsupportedSaslMechanism" in text:
        return f"does not offer {options['sasl_mechanism']}: check kafka.sasl_mechanism"
    if any(word in text.lower() for word in _SASL_WORDS):
        return f"refuses the login ({text}): check kafka.sasl_mechanism, sasl_username and sasl_password"
    if isinstance(error, TimeoutError):
        return _SILENT
    if "closed" in text and "SASL" not in options["security_protocol"]:
        return f"closes the connection ({text}): it may want a login, see kafka.security_protocol"
    return text


def _words(error: OSError) -> str:
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error) or type(error).__name__).lower()
