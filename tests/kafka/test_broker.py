"""`make kafka` where its port is taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from support.broker import KafkaBroker, main


def test_a_second_broker_is_not_started_beside_the_first(
    broker: KafkaBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = broker.ports["PLAINTEXT"]
    main(["--port", str(port), "--folder", str(tmp_path / "second")])
    assert capsys.readouterr().out == f"Kafka already runs on 127.0.0.1:{port}\n"
    assert not (tmp_path / "second").exists()


def test_a_port_of_another_program_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["--port", str(port), "--folder", str(tmp_path / "second")])
    assert ended.value.code == f"something already listens on {port}, and it is no Kafka broker"
    assert not (tmp_path / "second").exists()
