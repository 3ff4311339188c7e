"""PROXY headers as the core reads them, against a second reader."""

from __future__ import annotations

import random

import pytest

from storescp import _core
from storescp.errors import CoreError
from support.proxy_headers import RIGHT, Read, mutated, read

HEADERS = 50_000


def read_by_the_core(stream: bytes, draw: random.Random) -> Read | None:
    """As whoever reads from a socket does, in pieces of any length."""
    taken = 0
    while True:
        try:
            wanted, peer = _core.parse_proxy_header(stream[:taken])
        except CoreError:
            return None
        if wanted == 0:
            return Read(taken, peer)
        if taken == len(stream):
            return None
        taken = min(len(stream), taken + draw.choice((1, wanted, wanted, draw.randint(1, wanted))))


@pytest.mark.parametrize("header", RIGHT)
def test_both_readers_know_the_right_ones(header: bytes) -> None:
    found = read(header + b"what follows")
    assert found is not None
    assert found.length == len(header)
    assert read_by_the_core(header + b"what follows", random.Random(1)) == found
    assert _core.begins_proxy_header(header)


def test_both_readers_find_the_same_in_changed_headers() -> None:
    draw = random.Random(random.getrandbits(64))
    whole = 0
    for _ in range(HEADERS):
        # What follows has the bytes that a line ends with.
        stream = mutated(draw) + draw.choice((b"", b"\r\n", b"\1\0\0\0\0\4\r\nxx"))
        found = read(stream)
        assert read_by_the_core(stream, draw) == found, stream
        whole += found is not None
    assert HEADERS // 8 < whole < HEADERS * 7 // 8
