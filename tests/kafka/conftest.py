"""A real broker for all tests of this folder; each test has topics of its own."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.broker import KafkaBroker, Topics
from support.databases import database, postgres, url
from support.index_process import no_index_outlives_its_test
from support.kafka_proxy import KafkaProxy
from support.service import ServiceProcess

StartService = Callable[..., ServiceProcess]
__all__ = ["database", "no_index_outlives_its_test", "postgres", "url"]


def needs_java() -> None:
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: no Kafka broker")


@pytest.fixture(scope="session")
def kafka_proxy() -> Iterator[KafkaProxy]:
    proxy = KafkaProxy()
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def session_broker(tmp_path_factory: pytest.TempPathFactory, kafka_proxy: KafkaProxy) -> Iterator[KafkaBroker]:
    needs_java()
    broker = KafkaBroker(
        tmp_path_factory.mktemp("kafka"),
        listeners={"PROXIED": "PLAINTEXT"},
        advertised={"PROXIED": kafka_proxy.port},
    )
    kafka_proxy.target = broker.ports["PROXIED"]
    yield broker.start()
    broker.stop()


@pytest.fixture
def broker(session_broker: KafkaBroker) -> Iterator[KafkaBroker]:
    """The broker, running; whatever a test did to it is undone."""
    yield session_broker
    if session_broker.process is None:
        session_broker.start()
    session_broker.resume()


@pytest.fixture
def proxied(broker: KafkaBroker, kafka_proxy: KafkaProxy) -> Iterator[KafkaProxy]:
    """The way to the broker through the proxy."""
    yield kafka_proxy
    kafka_proxy.drop_answers(0)
    kafka_proxy.delay = 0.0
    kafka_proxy.refuse = None


_numbers = itertools.count(1)


@pytest.fixture
def names() -> Topics:
    """Names of two topics that do not exist yet."""
    number = next(_numbers)
    return Topics(f"storage_queue_{number}", f"log_queue_{number}")


@pytest.fixture
def topics(broker: KafkaBroker, names: Topics) -> Topics:
    """Two new topics of three partitions."""
    broker.create_topics(*names)
    return names


@pytest.fixture
def serve(start_service: StartService, tmp_path: Path) -> Callable[..., ServiceProcess]:
    """Starts the service on a broker: `serve(address, topics, kafka={...}, env={...})`."""

    def start(
        address: str,
        topics: Topics,
        *options: str,
        kafka: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **keywords: Any,
    ) -> ServiceProcess:
        variables = {"STORESCP_KAFKA__BROKERS": address, **topics.env, **(env or {})}
        for key, value in (kafka or {}).items():
            variables[f"STORESCP_KAFKA__{key.upper()}"] = str(value)
        return start_service(*options, env=variables, **keywords)

    return start
