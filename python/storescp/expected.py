"""What a setting of the wrong type is told: its place and an example, in words."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from pydantic.fields import FieldInfo

_ENTRY = re.compile(r"(.+?)\.([0-9]+)(?:\.(.+))?")
_FIRST = 1
# By the kinds of errors of pydantic.
_WHOLE = frozenset({"int_type", "int_parsing", "int_parsing_size", "int_from_float"})
_TEXTS = frozenset({"string_type", "secret_type"})
_OTHERS = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "path_type": "a path",
}


def place(key: str) -> str:
    """A key as messages name it; the entries of lists are counted from 1."""
    found = _ENTRY.fullmatch(key)
    if found is None:
        return key
    entry = f"entry {int(found[2]) + _FIRST} of {found[1]}"
    return f"{place(found[3])} in {entry}" if found[3] else entry


def of_type(kind: str, info: FieldInfo | None) -> str | None:
    """What a value should be by a kind of error of pydantic, None where its own words do."""
    default = None if info is None else info.default
    if kind in _WHOLE:
        return _with_example("a whole number", default if isinstance(default, int) else None)
    if kind in _TEXTS:
        own = None if info is None else next(iter(examples(info.annotation) or info.examples or ()), None)
        return _with_example("text", default if isinstance(default, str) and default else own)
    return _OTHERS.get(kind)


def examples(annotation: Any) -> list[Any]:
    """Those of the values of a type, or of a list of it."""
    own = [one for part in getattr(annotation, "__metadata__", ()) for one in getattr(part, "examples", None) or ()]
    return own or next((found for found in map(examples, get_args(annotation)) if found), [])


def _with_example(kind: str, example: object) -> str:
    return kind if example is None else f"{kind}, for example {json.dumps(example)}"
