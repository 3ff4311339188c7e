"""Logs: events with keys, one line each, to standard error; the last warnings are kept for the status page."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _what_happened_first(_logger: object, _name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Time, level and event before the details, for those who read a line from the left."""
    first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    return first | {key: value for key, value in event.items() if key not in first}


def _own_line(logger: _Lines, name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """The same for the service's own lines, in one step: there is one for each association."""
    return {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": _METHODS.get(name, name),
        "event": event.pop("event"),
        **event,
        "logger": logger.name,
    }


_METHODS = {"exception": "error", "warn": "warning"}
_KEPT_WARNINGS = 50
_TELLING = ("cause", "reason", "topic", "status", "outcome")


@dataclass
class Warned:
    """Warnings of one kind: the last line, how many, when the first and the last came (seconds since 1970)."""

    line: Mapping[str, object]
    count: int
    first: float
    last: float


class Warnings:
    """The last kinds of warnings and errors. No line of the log has patient data in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: OrderedDict[tuple[str, ...], Warned] = OrderedDict()

    def __call__(self, _logger: object, name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        """The step in the pipe of structlog."""
        if event.get("level", name) in ("warning", "error", "critical"):
            self._keep(dict(event))
        return event

    def kinds(self) -> list[Warned]:
        """The newest first."""
        with self._lock:
            return [Warned(kind.line, kind.count, kind.first, kind.last) for kind in reversed(self._kinds.values())]

    def _keep(self, line: dict[str, object]) -> None:
        key = (str(line.get("event")), *(str(line.get(name)) for name in _TELLING))
        now = time.time()
        with self._lock:
            known = self._kinds.pop(key, None)
            first, count = (now, 0) if known is None else (known.first, known.count)
            self._kinds[key] = Warned(line, count + 1, first, now)
            while len(self._kinds) > _KEPT_WARNINGS:
                self._kinds.popitem(last=False)


class _Lines:
    """Where the service's own lines go. Not by way of `logging`: that takes longer than to negotiate an association."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def msg(self, line: str) -> None:
        """Writes a line."""
        # A log that cannot be written must not end what it is about, and there is nowhere to tell it.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = exception = msg


# syslog.h, as sd-daemon(3) reads it at the beginning of a line.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def _is_journal() -> bool:
    """Whether standard error is the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class _ForTheJournal:
    """A renderer whose lines say how urgent they are, so that `journalctl -p warning` finds them."""

    def __init__(self, renderer: structlog.types.Processor) -> None:
        self._renderer = renderer

    def __call__(self, logger: object, name: str, event: structlog.types.EventDict) -> str:
        prefix = f"<{_PRIORITIES.get(str(event.get('level', name)), 6)}>"
        text = str(self._renderer(logger, name, event))
        return "\n".join(prefix + line for line in text.splitlines())


def configure(level: str, form: str) -> Warnings:
    """Sends everything, the libraries' records too, through one form to standard error; what was warned of.

    The form is `json`, `console`, or `auto`: lines for people where standard error is a terminal, else JSON.
    """
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    warned = Warnings()
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        # ensure_ascii escapes control characters and everything a terminal could act on.
        encoder = json.JSONEncoder(ensure_ascii=True, default=repr)

        def as_json(_logger: object, _name: str, event: structlog.types.EventDict) -> str:
            return encoder.encode(event)

        renderer: structlog.types.Processor = as_json
        exceptions: list[structlog.types.Processor] = [structlog.processors.format_exc_info]
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), repr_native_str=True)
        exceptions = []
    if _is_journal():
        renderer = _ForTheJournal(renderer)
    structlog.configure(
        processors=[_own_line, *exceptions, warned, renderer],
        logger_factory=_Lines,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, *exceptions, warned],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _what_happened_first, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    # pydicom's warnings quote values of the data set.
    warnings.simplefilter("ignore")
    # pynetdicom dumps requests, data sets included, at its debug and info levels; pydicom warns with values.
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return warned
