"""Every key of the configuration, read from the model, and how a file sets one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from storescp.settings import Settings

# What a table cannot be without.
REQUIRED = {
    "dicom_license_server": {"client_id": "c", "license_key": "k"},
    "kafka": {"brokers": "broker:9092"},
    "tls": {"certificate": "server.pem", "private_key": "server.pem"},
    "tls.clients": {"subject": "CN=a", "calling_ae_titles": ["A"]},
    "user_identity": {"users": "users"},
    "audit": {"destination": "file:audit.log"},
    "tenants.rules": {"tenant_id": "a"},
    "tenants.settings": {"tenant_id": "a"},
}


@dataclass(frozen=True)
class Key:
    """A key of a table, or of the entries of a list of tables (`tenants.rules`)."""

    table: str
    name: str
    info: FieldInfo
    schema: dict[str, Any]
    in_list: bool = False

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"

    @property
    def place(self) -> str:
        """As a message names it."""
        return self.place_named(self.name)

    def place_named(self, name: str) -> str:
        """The place of another name in the same table."""
        return f"{name} in entry 1 of {self.table}" if self.in_list else f"{self.table}.{name}"

    @property
    def is_secret(self) -> bool:
        return SecretStr in _parts(self.info.annotation)

    @property
    def is_path(self) -> bool:
        return Path in _parts(self.info.annotation)

    @property
    def default(self) -> Any:
        """As a file would write it; None where there is none."""
        value = self.info.default
        if value is PydanticUndefined or value is None:
            return None
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        return str(value) if isinstance(value, Path) else value

    def document(self, name: str, value: Any) -> dict[str, Any]:
        """A configuration with one key in this table, and what its tables cannot be without."""
        section, _, inner = self.table.partition(".")
        table = REQUIRED.get(self.table, {}) | {name: value}
        return {section: REQUIRED.get(section, {}) | {inner: [table]} if inner else table}

    def toml(self, name: str, value: Any) -> str:
        return as_toml(self.document(name, value))

    def toml_text(self, name: str, value: str) -> str:
        """As `toml`, for a value that is TOML already."""
        return self.toml(name, "-placeholder-").replace(json.dumps("-placeholder-"), value)


def _parts(annotation: Any) -> set[Any]:
    return {annotation}.union(*(_parts(part) for part in get_args(annotation)))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    models = [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return models[0] if models else None


def all_keys() -> list[Key]:
    """In the order of the model."""
    return [key for name, info in Settings.model_fields.items() for key in _keys_of(name, _model_of(info.annotation))]


def _keys_of(table: str, model: type[BaseModel] | None, in_list: bool = False) -> Iterator[Key]:
    assert model is not None, table
    properties = model.model_json_schema()["properties"]
    for name, info in model.model_fields.items():
        schema = properties[name]
        options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
        yield Key(table, name, info, options[0], in_list)
        inner = _model_of(info.annotation)
        if inner is not None:
            yield from _keys_of(f"{table}.{name}", inner, in_list=True)


def as_toml(document: dict[str, Any]) -> str:
    """Two levels of tables, and lists of tables in them."""
    lines = []
    for section, table in document.items():
        lines.append(f"[{section}]")
        lists = {
            key: value
            for key, value in table.items()
            if isinstance(value, list) and value and isinstance(value[0], dict)
        }
        lines += [f"{key} = {_value(value)}" for key, value in table.items() if key not in lists]
        for key, entries in lists.items():
            for entry in entries:
                lines += [f"[[{section}.{key}]]", *(f"{inner} = {_value(value)}" for inner, value in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
