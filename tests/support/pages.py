"""Sessions of the documentation: what a reader would type, in the order of the page, in a network of their own.

A `console` block holds commands behind `$ ` and what they print; `...` stands for anything. A `toml title="NAME"` block is a file
that the reader writes. `<!-- stays open -->` above a block says that its last command goes on while the next ones run, as
in another terminal; `<!-- interrupt -->` that what goes on is stopped first; `<!-- in a moment -->` that a command may be repeated until it
prints what the page says, as a reader would.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?P<marks>(?:<!--.*?-->\n)*)^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SECONDS = 60
# Loopback is down in a new network.
_LOOPBACK_UP = (
    "import fcntl, socket, struct\n"
    "s = socket.socket()\n"
    "fcntl.ioctl(s, 0x8914, struct.pack('16sh22x', b'lo', 0x49))\n"
    "print('up', flush=True)\n"
    # Until whoever opened it closes it, or is gone.
    "input()\n"
)


@dataclass(frozen=True)
class Command:
    """A command of a page, what it prints by the page, and whether it goes on."""

    text: str
    printed: str
    stays: bool
    interrupts: bool
    is_repeated: bool


@dataclass(frozen=True)
class Written:
    """A file of a page."""

    name: str
    text: str


def steps(page: Path) -> list[Command | Written]:
    """What a reader does."""
    found: list[Command | Written] = []
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["title"]:
            found.append(Written(block["title"], block["body"]))
        elif block["kind"] == "console":
            commands = re.split(r"^\$ ", block["body"], flags=re.MULTILINE)[1:]
            for number, part in enumerate(commands):
                text, printed = _split(part)
                stays = "stays open" in block["marks"] and number == len(commands) - 1
                interrupts = "interrupt" in block["marks"] and number == 0
                found.append(
                    Command(text, printed, stays, interrupts, "in a moment" in block["marks"] and printed != "")
                )
    return found


def _split(part: str) -> tuple[str, str]:
    """A command ends with its line, but for one that ends in a backslash or begins a here-document."""
    lines = part.splitlines(keepends=True)
    count = 1
    document = re.search(r"<<'?(\w+)'?", lines[0])
    if document:
        count = next(at for at, line in enumerate(lines) if line.strip() == document[1]) + 1
    while lines[count - 1].endswith("\\\n"):
        count += 1
    return "".join(lines[:count]).strip(), "".join(lines[count:])


def tables(page: Path) -> list[str]:
    """The TOML blocks of a page."""
    return [block["body"] for block in _BLOCK.finditer(page.read_text(encoding="utf-8")) if block["kind"] == "toml"]


def matches(printed: str, output: str) -> bool:
    """Whether the output is what the page says: `...` in a line is anything in it, `...` for a line any number of lines."""
    return re.fullmatch(_pattern(printed), _trimmed(output)) is not None


def contains(printed: str, output: str) -> bool:
    """Whether what the page says is a part of the output."""
    return re.search(f"(?m:^){_pattern(printed)}", _trimmed(output)) is not None


def _pattern(printed: str) -> str:
    pattern = ""
    for line in printed.strip().splitlines():
        pattern += r"(?:[^\n]*\n)*?" if line == "..." else r"[^\n]*?".join(map(re.escape, line.split("..."))) + r"\n"
    return pattern


def _trimmed(output: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in output.strip().splitlines())


class Terminal:
    """Where the commands of a page run: a folder, and a network in which every port is free."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.at = folder
        tools = Path(sys.executable).parent
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("STORESCP_", "PYTEST_"))}
        self._environment = (
            kept | {"PATH": f"{tools}:{os.environ['PATH']}", "COLUMNS": "80", "TERM": "dumb"} | environment
        )
        self._open: list[tuple[subprocess.Popen[bytes], Path]] = []
        prefix = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._network = subprocess.Popen(
            ["unshare", "--net", *prefix, sys.executable, "-c", _LOOPBACK_UP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == b"up\n"
        enter = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        # What is started in the background, as the tests may be, ignores what a reader's Ctrl-C sends.
        reader = ["env", "--default-signal=INT"]
        self._enter = ["nsenter", "--target", str(self._network.pid), "--net", *enter, *reader]

    def run(self, command: Command) -> str:
        """Runs it, again where that helps; what it printed so far.

        Raises:
            AssertionError: it failed, or does not come to an end.
        """
        if command.interrupts:
            self.interrupt()
        output = self._run(command)
        deadline = time.monotonic() + _SECONDS
        while command.is_repeated and not matches(command.printed, output) and time.monotonic() < deadline:
            output = self._run(command)
        return output

    def _run(self, command: Command) -> str:
        where = self.folder / ".at"
        script = f"cd {shlex.quote(str(self.at))} && {{ {command.text}\n}}; code=$?; pwd >{shlex.quote(str(where))}; exit $code"
        log = self.folder / f".output-{time.monotonic_ns()}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *self._enter,
                    "bash",
                    "-c",
                    f"cd {shlex.quote(str(self.at))} && {command.text}" if command.stays else script,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        if command.stays:
            self._open.append((process, log))
            return self._wait_for(process, log, command)
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"$ {command.text}\ndoes not end:\n{log.read_text()}") from None
        text = log.read_text(errors="replace")
        assert code == 0 or command.is_repeated, f"$ {command.text}\nended with {code}:\n{text}{self._open_output()}"
        self.at = Path(where.read_text().strip())
        return text

    def _wait_for(self, process: subprocess.Popen[bytes], log: Path, command: Command) -> str:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            text = log.read_text(errors="replace")
            if contains(command.printed, text):
                return text
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        raise AssertionError(f"$ {command.text}\nprinted:\n{log.read_text()}")

    def _open_output(self) -> str:
        return "".join(f"\n--- still open:\n{log.read_text(errors='replace')[-4000:]}" for _, log in self._open)

    def interrupt(self) -> None:
        """Ends what is open, the last first, as a reader would."""
        for process, _ in reversed(self._open):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        self._open.clear()

    def close(self) -> None:
        """Interrupts what is open; the network goes."""
        self.interrupt()
        self._network.communicate(b"\n", timeout=_SECONDS)


@contextlib.contextmanager
def terminal(folder: Path, **environment: str) -> Iterator[Terminal]:
    """A terminal that is closed in the end."""
    opened = Terminal(folder, environment)
    try:
        yield opened
    finally:
        opened.close()
