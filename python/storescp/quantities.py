"""Sizes and durations as people write them: `10 GiB`, `500 MB`, `7 d`, `500 ms`."""

from __future__ import annotations

import re
from decimal import Decimal

BYTES_EXPECTED = 'a number of bytes, or a size such as "512 MiB" or "10 GB" (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)'
SECONDS_EXPECTED = 'a number of seconds, or a duration such as "7 d" or "30 min" (ms, s, min, h, d)'
MILLISECONDS_EXPECTED = 'a number of milliseconds, or a duration such as "5 ms" or "1 s" (ms, s, min, h, d)'

_SIZES = {"b": 1} | {
    f"{prefix}{infix}b": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kmgt", 1)
}
_DURATIONS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_WITH_UNIT = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]+)\s*", re.ASCII)


def size(value: object) -> object:
    """A size as a number of bytes. A number stays as it is, also in a text.

    Raises:
        ValueError: it is none; the text says what is expected.
    """
    return _parse(value, {unit: Decimal(factor) for unit, factor in _SIZES.items()}, BYTES_EXPECTED, fold=True)


def seconds(value: object) -> object:
    """A duration as a number of seconds. A number stays as it is, also in a text.

    Raises:
        ValueError: it is none; the text says what is expected.
    """
    return _parse(value, {unit: Decimal(factor) / 1000 for unit, factor in _DURATIONS.items()}, SECONDS_EXPECTED)


def milliseconds(value: object) -> object:
    """As `seconds`, for a key in milliseconds.

    Raises:
        ValueError: it is none; the text says what is expected.
    """
    return _parse(value, {unit: Decimal(factor) for unit, factor in _DURATIONS.items()}, MILLISECONDS_EXPECTED)


def _parse(value: object, units: dict[str, Decimal], expected: str, *, fold: bool = False) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise ValueError(expected)  # noqa: TRY004 - pydantic turns a ValueError into a problem of the key
    found = _WITH_UNIT.fullmatch(value)
    factor = units.get(found[2].lower() if fold else found[2]) if found else None
    if found is not None and factor is not None:
        amount = Decimal(found[1]) * factor
        # A fraction of a byte is refused by the type of the key.
        return int(amount) if amount == int(amount) else float(amount)
    try:
        float(value)
    except ValueError:
        raise ValueError(expected) from None
    return value


def text_of_size(count: int) -> str:
    """The largest binary unit in which a number of bytes is whole, or nothing where that is the byte: `2 GiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count and count % 1024**power == 0:
            return f"{count // 1024**power} {unit}"
    return ""


def text_of_seconds(count: float) -> str:
    """The largest unit in which seconds are whole, from a minute: `30 d`, `10 min`; nothing where there is none."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if count and count % length == 0:
            return f"{count / length:.0f} {unit}"
    return ""
