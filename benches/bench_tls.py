"""Reception over TLS beside the clear port of the same service."""

from __future__ import annotations

import ssl
import statistics
import time
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from quiet import quiet
from support.certificates import Authority
from support.instances import CT, ct_slice
from support.scu import EXPLICIT, RawAssociation
from support.service import ServiceProcess

ROUNDS, INSTANCES = 7, 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("durability", ["none", "full"])
def test_tls_against_clear(bench_folder: Path, version: ssl.TLSVersion, durability: str) -> None:
    """CT slices of 525 KB over one association; the sender's own encryption is part of it."""
    authority = Authority.make(bench_folder / "pki", "CA")
    server = authority.issue("server", purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    context = ssl.create_default_context(cafile=str(authority.file))
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(authority.issue("ct1", purpose=ExtendedKeyUsageOID.CLIENT_AUTH))
    service = ServiceProcess(
        bench_folder / "data",
        env={
            "STORESCP_TLS__CERTIFICATE": str(server),
            "STORESCP_TLS__PRIVATE_KEY": str(server),
            "STORESCP_TLS__CLIENT_CA": str(authority.file),
            "STORESCP_TLS__PORT": "0",
            "STORESCP_LOCAL_STORAGE__DURABILITY": durability,
        },
        listeners=2,
    )
    template = ct_slice(1)
    rates: dict[str, list[float]] = {"clear": [], "TLS": []}
    for number in range(ROUNDS + 1):
        for name, port, tls in (("clear", service.port, None), ("TLS", service.tls_port, context)):
            quiet(bench_folder)
            with RawAssociation(port, [(1, CT, [EXPLICIT])], tls=tls) as association:
                association.max_pdu = 16384
                began = time.perf_counter()
                for copy in range(INSTANCES):
                    # The UIDs keep their length.
                    uid = f"{template.sop_instance[:-8]}{len(name)}{number:03}{copy:04}"
                    dataset = template.dataset.replace(template.sop_instance.encode(), uid.encode())
                    assert association.store(1, CT, uid, dataset).status == 0
                seconds = time.perf_counter() - began
                association.release()
            if number:
                rates[name].append(INSTANCES / seconds)
    assert len(service.files()) == 2 * (ROUNDS + 1) * INSTANCES
    service.stop()
    clear, tls_rate = (statistics.median(rates[name]) for name in ("clear", "TLS"))
    print(
        f"\n{version.name}, durability {durability}: {clear:.0f}/s clear, {tls_rate:.0f}/s TLS ({tls_rate / clear:.2f})"
    )
