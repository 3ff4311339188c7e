"""TLS, mutual TLS, SASL: what works, what a wrong setting says, and recovery where only the broker was at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support.broker import KafkaBroker, Topics
from support.certificates import Authority
from support.load import Ledger, check_delivery, send
from support.service import ServiceProcess

Serve = Callable[..., ServiceProcess]
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass
class Secured:
    """A broker with every kind of listener."""

    broker: KafkaBroker
    ours: Authority
    other: Authority

    def with_certificate_of(self, authority: Authority) -> None:
        self.broker.configure(ssl__keystore__location=authority.issue("broker"))

    def with_password(self, password: str) -> None:
        user = f'{PLAIN} user_alice="{password}";'
        self.broker.configure(
            listener__name__sasl__plain__sasl__jaas__config=user, listener__name__secure__plain__sasl__jaas__config=user
        )

    def restart(self) -> None:
        self.broker.stop()
        self.broker.start()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    needs_java()
    folder = tmp_path_factory.mktemp("secured")
    ours, other = Authority.make(folder / "ours", "Our CA"), Authority.make(folder / "other", "Another CA")
    listeners = {"TLS": "SSL", "MTLS": "SSL", "SASL": "SASL_PLAINTEXT", "SECURE": "SASL_SSL"}
    broker = KafkaBroker(
        folder / "broker",
        listeners=listeners,
        scram={"bob": "scram-secret"},
        properties={
            "ssl.keystore.type": "PEM",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": ours.file,
            "listener.name.mtls.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": SCRAM,
            "listener.name.secure.scram-sha-512.sasl.jaas.config": SCRAM,
        },
    )
    one = Secured(broker, ours, other)
    one.with_certificate_of(ours)
    one.with_password("plain-secret")
    broker.start()
    yield one
    broker.stop()


def needs_java() -> None:
    import shutil

    if shutil.which("java") is None or shutil.which("mvn") is None:
        pytest.skip("java or mvn is not installed: no Kafka broker")


@pytest.fixture
def two_topics(secured: Secured, names: Topics) -> Topics:
    secured.broker.create_topics(*names, partitions=1)
    return names


PLAIN_LOGIN = {"sasl_mechanism": "PLAIN", "sasl_username": "alice", "sasl_password": "plain-secret"}
SCRAM_LOGIN = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "bob", "sasl_password": "scram-secret"}
CASES: dict[str, tuple[str, str, dict[str, str]]] = {
    "tls": ("TLS", "SSL", {}),
    "mutual tls": ("MTLS", "SSL", {"client": ""}),
    "mutual tls, key with password": ("MTLS", "SSL", {"client": "key-secret"}),
    "sasl plain": ("SASL", "SASL_PLAINTEXT", PLAIN_LOGIN),
    "sasl plain over tls": ("SECURE", "SASL_SSL", PLAIN_LOGIN),
    "scram": ("SASL", "SASL_PLAINTEXT", SCRAM_LOGIN),
    "scram over tls": ("SECURE", "SASL_SSL", SCRAM_LOGIN),
}


def settings(secured: Secured, protocol: str, more: dict[str, str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {"security_protocol": protocol, **more}
    if protocol.endswith("SSL"):
        chosen["ssl_cafile"] = secured.ours.file
    if "client" in chosen:
        password = chosen.pop("client")
        chosen["ssl_certfile"] = secured.ours.issue("client", password=password or None)
        if password:
            chosen["ssl_key_password"] = password
    return chosen


@pytest.mark.parametrize("case", CASES)
def test_it_works(serve: Serve, secured: Secured, two_topics: Topics, case: str) -> None:
    listener, protocol, more = CASES[case]
    service = serve(secured.broker.address(listener), two_topics, kafka=settings(secured, protocol, more))
    ledger = Ledger()
    send(service.port, "1.2.3.1", ledger, count=10)
    assert service.stop() == 0
    for topic in two_topics:
        assert check_delivery(service, ledger, secured.broker.read(topic)).records == 10


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "wrong ca": ("TLS", {"security_protocol": "SSL", "ssl_cafile": "other"}, "not trusted"),
    "no ca": ("TLS", {"security_protocol": "SSL"}, "not trusted"),
    "no client certificate": ("MTLS", {"security_protocol": "SSL", "ssl_cafile": "ours"}, "certificate"),
    "plaintext to tls": ("TLS", {}, "speaks TLS: set kafka.security_protocol to SSL or SASL_SSL"),
    "tls to plaintext": ("PLAINTEXT", {"security_protocol": "SSL", "ssl_cafile": "ours"}, "does not speak TLS"),
    "wrong plain password": (
        "SASL", {"security_protocol": "SASL_PLAINTEXT", **PLAIN_LOGIN, "sasl_password": "wrong"}, "refuses the login",
    ),
    "wrong scram password": (
        "SECURE",
        {"security_protocol": "SASL_SSL", "ssl_cafile": "ours", **SCRAM_LOGIN, "sasl_password": "wrong"},
        "refuses the login",
    ),
    "unknown mechanism": (
        "SASL", {"security_protocol": "SASL_PLAINTEXT", **SCRAM_LOGIN, "sasl_mechanism": "SCRAM-SHA-256"}, "does not offer SCRAM-SHA-256",
    ),
    "no login": ("SASL", {}, "it may want a login"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_says_what_to_do_and_reception_goes_on(
    serve: Serve, secured: Secured, two_topics: Topics, case: str
) -> None:
    listener, chosen, part = WRONG[case]
    folders = {"ours": secured.ours.file, "other": secured.other.file}
    kafka = {key: folders.get(value, value) for key, value in chosen.items()}
    env = {"STORESCP_SERVICE__PUBLISH_TIMEOUT": "0.5"}
    service = serve(secured.broker.address(listener), two_topics, kafka={"request_timeout": 2, **kafka}, env=env)
    ledger = Ledger()
    send(service.port, "1.2.3.1", ledger, count=10)
    assert ledger.statuses == {0: 10}
    event = service.wait_for_event("publish.failed", 20)
    print(f"\n{case}: {event['reason']}")
    assert event["reason"].startswith(f"{secured.broker.address(listener)}: ")
    assert part in event["reason"]
    assert service.stop() == 0


@pytest.mark.timeout(240)
def test_recovery_without_restart_where_only_the_broker_was_at_fault(
    serve: Serve, secured: Secured, two_topics: Topics
) -> None:
    secured.with_certificate_of(secured.other)
    secured.with_password("another")
    secured.restart()
    tls = serve(
        secured.broker.address("TLS"), two_topics, root=None,
        kafka={"security_protocol": "SSL", "ssl_cafile": secured.ours.file},
    )  # fmt: skip
    ledger = Ledger()
    send(tls.port, "1.2.3.1", ledger, count=10)
    assert "not trusted" in tls.wait_for_event("publish.failed", 20)["reason"]
    login = serve(
        secured.broker.address("SASL"), two_topics, root=tls.root.parent / "login",
        kafka={"security_protocol": "SASL_PLAINTEXT", **PLAIN_LOGIN},
    )  # fmt: skip
    send(login.port, "1.2.4.1", ledger, count=10)
    assert "refuses the login" in login.wait_for_event("publish.failed", 20)["reason"]
    assert ledger.statuses == {0: 20}
    secured.with_certificate_of(secured.ours)
    secured.with_password("plain-secret")
    secured.restart()
    for service in (tls, login):
        service.wait_for_event("publish.recovered", 30)
        assert service.stop() == 0
    for topic in two_topics:
        assert check_delivery(tls, ledger, secured.broker.read(topic)).duplicates == 0
