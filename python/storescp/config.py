"""Where the configuration comes from: options, environment, file, defaults, in this order.

Read once at start, frozen, and passed down. Nothing below reads the environment.
"""

from __future__ import annotations

import json
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from storescp import rdkafka
from storescp.errors import ConfigError, ConfigProblem
from storescp.settings import Settings

ENV_PREFIX = "STORESCP_"
_SECRET_KEYS = frozenset({"license_key", "sasl_password", "ssl_key_password"})
_MASK = "********"
# Relative ones in a file are relative to the file.
_PATH_KEYS = (
    ("dicom_license_server", "client_certificate"),
    ("dicom_license_server", "ca_certificate"),
    ("local_storage", "dicm_store_path"),
    ("kafka", "ssl_cafile"),
    ("kafka", "ssl_certfile"),
    ("kafka", "ssl_keyfile"),
    ("tls", "certificate"),
    ("tls", "private_key"),
    ("tls", "client_ca"),
    ("tls", "crl"),
    ("user_identity", "users"),
    ("audit", "ca_certificate"),
    ("audit", "client_certificate"),
)
_CERTIFICATE_DEFAULTS = {"client_certificate": "client.pem", "ca_certificate": "ca.pem"}
Layer = dict[str, Any]


@dataclass(frozen=True)
class Configuration:
    """The settings, and where each value came from."""

    settings: Settings
    file: Path | None
    layers: tuple[tuple[str, Layer], ...]
    warnings: tuple[str, ...] = ()
    evaluation: bool = field(default=False)

    @property
    def host(self) -> str:
        """The bind address."""
        given = self.settings.dicom_store_scp.host
        return given or ("127.0.0.1" if self.evaluation else "0.0.0.0")  # noqa: S104 - documented default

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Every key with its value, secrets masked, and its source."""
        for key, value in _flatten(self.settings):
            if key == ("dicom_store_scp", "host") and value is None:
                yield ".".join(key), _show(key, self.host), "default"
                continue
            yield ".".join(key), _show(key, value), _source_of(key, self.layers)


def load(options: Mapping[tuple[str, str], Any], file: Path | None) -> Configuration:
    """Reads and validates the configuration.

    `options` holds what was given on the command line, by section and key.

    Raises:
        ConfigError: with every problem found.
    """
    warnings: list[str] = []
    layers: list[tuple[str, Layer]] = [
        ("option", _nest(options)),
        ("environment", _environment(warnings)),
    ]
    if file is not None:
        layers.append((str(file), _read_file(file, warnings)))
    merged: Layer = {}
    for _, layer in reversed(layers):
        merged = _merge(merged, layer)
    evaluation = file is None and "dicom_license_server" not in merged
    _certificate_defaults(merged, file)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(*_problems(error, layers)) from None
    _cross_checks(settings, layers)
    if settings.tenants.from_private_element and not settings.tenants.known:
        warnings.append("tenants.known is empty: every instance that carries the private tenant element is refused")
    return Configuration(settings, file, tuple(layers), tuple(warnings), evaluation)


def _nest(options: Mapping[tuple[str, str], Any]) -> Layer:
    layer: Layer = {}
    for (section, key), value in options.items():
        layer.setdefault(section, {})[key] = value
    return layer


class _EnvironmentBase(BaseSettings):
    """`STORESCP_SECTION__KEY`; values are checked with all others later."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__")


# Every section, so that none is ignored in silence.
_SECTIONS: dict[str, Any] = dict.fromkeys(Settings.model_fields, (dict[str, Any] | None, None))
_Environment = create_model("_Environment", __base__=_EnvironmentBase, **_SECTIONS)


def _environment(warnings: list[str]) -> Layer:
    source = EnvSettingsSource(_Environment)
    for name in source.env_vars:
        section, delimiter, _ = name.removeprefix(ENV_PREFIX.lower()).partition("__")
        if name.startswith(ENV_PREFIX.lower()) and delimiter and section not in Settings.model_fields:
            warnings.append(f"environment variable {name.upper()} names no section and is ignored")
    try:
        layer = source()
    except SettingsError as error:
        raise ConfigError(ConfigProblem("environment", "?", f"JSON ({error})", "environment")) from None
    return {key: _parse_json_values(value, Settings.model_fields[key].annotation) for key, value in layer.items()}


def _parse_json_values(section: Any, annotation: Any) -> Any:
    """Environment values for lists and tables are JSON."""
    model = _model_of(annotation)
    if model is None or not isinstance(section, dict):
        return section
    parsed = dict(section)
    for key, value in section.items():
        info = model.model_fields.get(key)
        if info is None or not isinstance(value, str):
            continue
        if "tuple" in str(info.annotation) and value.strip().startswith(("[", "{")):
            try:
                parsed[key] = json.loads(value)
            except json.JSONDecodeError as error:
                raise ConfigError(ConfigProblem(key, value, f"JSON: {error}", "environment")) from None
    return parsed


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((model for model in map(_model_of, get_args(annotation)) if model), None)
    return None


def _read_file(file: Path, warnings: list[str]) -> Layer:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(ConfigProblem("--config", str(file), f"a readable file ({error})", "option")) from None
    is_json = file.suffix.lower() == ".json" or text.lstrip().startswith("{")
    try:
        layer: Layer = json.loads(text) if is_json else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        kind = "JSON" if is_json else "TOML"
        raise ConfigError(ConfigProblem("--config", str(file), f"valid {kind} ({error})", "option")) from None
    if not isinstance(layer, dict):
        raise ConfigError(ConfigProblem("--config", str(file), "a table of sections", "option"))
    if is_json:
        layer = _adopt_application_json(layer, warnings)
    _resolve_paths(layer, file.absolute().parent)
    return layer


def _adopt_application_json(layer: Layer, warnings: list[str]) -> Layer:
    """wado-storescp's application.json: shared with other services, so what is not ours is left alone."""
    adopted: Layer = {}
    ignored: list[str] = []
    private: dict[str, int] = {}
    for section, table in layer.items():
        if section in ("tenant_group", "tenant_element"):
            private[section] = _number(section, table)
            continue
        info = Settings.model_fields.get(section)
        model = _model_of(info.annotation) if info else None
        if model is None or not isinstance(table, dict):
            ignored.append(section)
            continue
        known = _names(model)
        own = rdkafka.adopt(table, warnings) if section == "kafka" else table
        for key, value in own.items():
            if key in ("tenant_group", "tenant_element"):
                private[key] = _number(f"{section}.{key}", value)
            elif key in known:
                adopted.setdefault(section, {})[key] = value
            else:
                ignored.append(f"{section}.{key}")
    if private:
        tenants = adopted.setdefault("tenants", {})
        tenants.setdefault("from_private_element", True)
        tenants.setdefault("private_group", private.get("tenant_group", 0x1211))
        tenants.setdefault("private_element", private.get("tenant_element", 0x1217))
    if ignored:
        warnings.append("ignored in the configuration file: " + ", ".join(ignored))
    return adopted


def _number(key: str, value: Any) -> int:
    try:
        return value if isinstance(value, int) else int(str(value), 0)
    except ValueError:
        raise ConfigError(ConfigProblem(key, repr(value), "a number like 4625 or 0x1211", "file")) from None


def _names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for info in model.model_fields.values():
        alias = info.validation_alias
        names |= {choice for choice in getattr(alias, "choices", ()) if isinstance(choice, str)}
    return names


def _resolve_paths(layer: Layer, base: Path) -> None:
    for section, key in _PATH_KEYS:
        table = layer.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = str(base / Path(table[key]).expanduser())
    index = layer.get("index")
    if isinstance(index, dict) and isinstance(index.get("database"), str):
        scheme, separator, path = index["database"].partition(":///")
        if separator and scheme.startswith("sqlite") and path and path != ":memory:":
            index["database"] = f"{scheme}:///{base / Path(path).expanduser()}"
    audit = layer.get("audit")
    if isinstance(audit, dict) and str(audit.get("destination", "")).startswith("file:"):
        path = str(audit["destination"]).removeprefix("file:").removeprefix("//")
        audit["destination"] = f"file:{base / Path(path).expanduser()}"
    tenants = layer.get("tenants")
    for entry in tenants.get("settings", ()) if isinstance(tenants, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("storage_root"), str):
            entry["storage_root"] = str(base / Path(entry["storage_root"]).expanduser())


def _certificate_defaults(merged: Layer, file: Path | None) -> None:
    table = merged.get("dicom_license_server")
    if isinstance(table, dict):
        base = file.absolute().parent if file else Path.cwd()
        for key, name in _CERTIFICATE_DEFAULTS.items():
            table.setdefault(key, str(base / name))


def _merge(below: Layer, above: Layer) -> Layer:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _problems(error: ValidationError, layers: list[tuple[str, Layer]]) -> Iterator[ConfigProblem]:
    for found in error.errors(include_url=False):
        location = tuple(str(part) for part in found["loc"])
        message = found["msg"].removeprefix("Value error, ")
        value = found["input"]
        if found["type"] == "missing":
            message, value = "a value (the key is missing)", None
        elif found["type"] == "extra_forbidden":
            message = "no such key (unknown)"
        else:
            message = message.removeprefix("Input should be ")
        yield ConfigProblem(".".join(location), _show(location, value), message, _source_of(location, layers))


def _cross_checks(settings: Settings, layers: list[tuple[str, Layer]]) -> None:
    storage = settings.local_storage
    if not _is_utf8(storage.dicm_store_path):
        key = ("local_storage", "dicm_store_path")
        raise ConfigError(ConfigProblem(".".join(key), "?", "a path in UTF-8", _source_of(key, layers)))
    if settings.message_queue.topic_main == settings.message_queue.topic_dicom_receive:
        key = ("message_queue", "topic_dicom_receive")
        value = settings.message_queue.topic_main
        raise ConfigError(ConfigProblem(".".join(key), value, "another topic than topic_main", _source_of(key, layers)))
    _check_tenant_roots(settings, layers)
    if settings.user_identity is not None and settings.tls is None:
        key = ("user_identity", "users")
        expected = "a [tls] section too: passcodes are taken over TLS only"
        raise ConfigError(
            ConfigProblem(".".join(key), str(settings.user_identity.users), expected, _source_of(key, layers))
        )
    kafka = settings.kafka
    if kafka is not None and kafka.security_protocol.startswith("SASL"):
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            if getattr(kafka, name) is None:
                expected = f"a value, because kafka.security_protocol is {kafka.security_protocol}"
                raise ConfigError(
                    ConfigProblem(f"kafka.{name}", "null", expected, _source_of(("kafka", "security_protocol"), layers))
                )


def _check_tenant_roots(settings: Settings, layers: list[tuple[str, Layer]]) -> None:
    """A root within another one would look like a tenant of it."""
    source = _source_of(("tenants", "settings"), layers)
    ids = [entry.tenant_id for entry in settings.tenants.settings]
    if len(set(ids)) != len(ids):
        raise ConfigError(ConfigProblem("tenants.settings", json.dumps(ids), "each tenant_id once", source))
    roots = [settings.local_storage.dicm_store_path]
    for entry in settings.tenants.settings:
        root = entry.storage_root
        if root is None:
            continue
        if any(root != other and (root in other.parents or other in root.parents) for other in roots):
            expected = "a folder that is not within another storage root, nor around one"
            raise ConfigError(ConfigProblem("tenants.settings.storage_root", str(root), expected, source))
        roots.append(root)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _flatten(model: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        key = (*prefix, name)
        if isinstance(value, BaseModel):
            yield from _flatten(value, key)
        elif value is None and len(key) == 1:
            continue
        else:
            yield key, value


def _show_url(url: str) -> str:
    """A database URL without its password; one with parameters, which may hold one too, not at all."""
    if "?" in url:
        return _MASK
    return re.sub(r"(?<=//)([^:/@]*):.*@", rf"\1:{_MASK}@", url)


def _show(key: tuple[str, ...], value: Any) -> str:
    if key == ("index", "database"):
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        return json.dumps(_show_url(text)) if isinstance(text, str) else _MASK
    if isinstance(value, SecretStr) or (key and key[-1] in _SECRET_KEYS and value is not None):
        return _MASK
    if isinstance(value, dict):
        return json.dumps({k: _show((*key, k), v) for k, v in value.items()}, default=str)
    if isinstance(value, tuple | list):
        plain = [v.model_dump(mode="json", exclude_none=True) if isinstance(v, BaseModel) else v for v in value]
        return json.dumps(plain, default=str)
    return json.dumps(value, default=str)


def _source_of(key: tuple[str, ...], layers: tuple[tuple[str, Layer], ...] | list[tuple[str, Layer]]) -> str:
    names = {key[-1]} | ({"topic_log"} if key[-1:] == ("topic_dicom_receive",) else set())
    for source, layer in layers:
        table: Any = layer
        for part in key[:-1]:
            if not isinstance(table, dict) or part not in table:
                break
            table = table[part]
            if isinstance(table, list):
                return source
        else:
            if isinstance(table, dict) and names & set(table):
                return source
    return "default"
