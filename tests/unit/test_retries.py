"""One line of the log when records that were set aside are delivered."""

from __future__ import annotations

import logging

from aiokafka import errors
from structlog.testing import capture_logs

from storescp import advice
from storescp.kafka.complaints import COMPLAINTS
from storescp.publish import kafka
from storescp.publish.kafka import KafkaSink
from storescp.publish.retries import Retries
from storescp.settings import Kafka


def test_the_line_comes_once_when_all_topics_have_gone_through() -> None:
    retries = Retries(("main", "log"))
    with capture_logs() as lines:
        retries.passed("main", 0, 5)
        before = retries.number
        retries.begin(3, 5)
        retries.passed("main", before, 5)
        retries.passed("log", retries.number, 5)
        retries.passed("log", retries.number, 5)
        assert lines == []
        retries.passed("main", retries.number, 5)
        retries.passed("main", retries.number, 5)
    [line] = lines
    assert (line["event"], line["rows"], line["log_level"]) == ("outbox.retry_over", 3, "info")
    assert "rejected" not in line


def test_records_that_are_refused_again_are_told_of() -> None:
    retries = Retries(("main",))
    with capture_logs() as lines:
        retries.begin(3, 5)
        retries.passed("main", retries.number, 7)
    assert [(line["rejected"], line["log_level"]) for line in lines] == [(2, "warning")]


def test_brokers_that_are_away_are_named_and_not_numbered() -> None:
    sink = KafkaSink(Kafka(brokers="a.example:9092,b.example:9092"))
    for text, expected in (
        ("Unable to update metadata from [1]", "no broker of kafka.brokers (a.example:9092,b.example:9092) answers"),
        ("Unable to request metadata from node", "Unable to request metadata from node"),
    ):
        COMPLAINTS.emit(logging.LogRecord("aiokafka", logging.ERROR, "", 0, text, None, None))
        assert sink.complaint() == expected


def test_a_record_that_is_too_large_names_what_limits_it() -> None:
    assert "max.message.bytes" in kafka._describe(errors.MessageSizeTooLargeError())
    assert "max.message.bytes" not in kafka._describe(errors.PolicyViolationError())
    assert "storescpd outbox retry" in advice.of_event("publish.rejected")
