"""Where the configuration comes from: options, environment, file, defaults, in this order.

Read once at start, frozen, and passed down. Nothing below reads the environment. No message shows the value of a secret
or of a key that is not known: a secret may be behind a misspelt name.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from storescp import masking, rdkafka
from storescp.errors import ConfigError, ConfigProblem
from storescp.expected import examples, of_type
from storescp.settings import OTHER_KEY_NAMES, OTHER_SECTION_NAMES, Settings

ENV_PREFIX = "STORESCP_"
_ENVIRONMENT = "environment"
_DELIMITER = "__"
_CERTIFICATE_DEFAULTS = {"client_certificate": "client.pem", "ca_certificate": "ca.pem"}
# Kubernetes sets these in every pod beside a service whose name begins with "storescp".
_SERVICE_LINK = re.compile(
    r"STORESCP_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
# The Rust core reads it, where it is built with fail points.
_FAIL_POINT = "STORESCP_FAIL_POINT"
_SIMILAR = 0.75
_SHOWN_CHARACTERS = 200
# What wado-storescp refuses an instance without.
_ORIGINAL_REQUIRES = ("PatientID", "StudyDate")
# wado-storescp's names of the private element that names the tenant.
_PRIVATE_TAG = {"tenant_group": "private_group", "tenant_element": "private_element"}
# Sections and keys of wado-storescp that are for other services.
_ORIGINAL_ONLY = frozenset(
    {
        *("redis", "main_database", "secondary_database", "server", "wado_oauth2", "webworker"),
        "local_storage.json_store_path",
        *(f"message_queue.{key}" for key in ("consumer_group_id", "topic_dicom_state", "topic_dicom_image")),
    }
)
_ORIGINAL_DEFAULTS = "default (as wado-storescp)"
_TAG_KEYS = (("tenants", "private_group"), ("tenants", "private_element"))
Layer = dict[str, Any]
Location = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A place that values come from. `written` has the keys that were given by another name, and that name."""

    name: str
    table: Layer
    written: Mapping[Location, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """The settings, and where each value came from."""

    settings: Settings
    file: Path | None
    layers: tuple[Source, ...]
    warnings: tuple[str, ...] = ()
    evaluation: bool = field(default=False)
    problems: tuple[ConfigProblem, ...] = ()

    @property
    def host(self) -> str:
        """The bind address."""
        given = self.settings.dicom_store_scp.host
        return given or ("127.0.0.1" if self.evaluation else "0.0.0.0")  # noqa: S104 - documented default

    def is_sound(self, *sections: str) -> bool:
        """Whether there is no problem in any of these sections."""
        return not {problem.key.partition(".")[0] for problem in self.problems} & set(sections)

    def source_of(self, key: str) -> str:
        """Where the value of a key comes from, or its table where it has no value."""
        return _nearest_source(tuple(key.split(".")), self.layers)

    def is_given(self, key: str) -> bool:
        """Whether an option or the file has a value for a key."""
        location = tuple(key.split("."))
        return _source_of(location, [layer for layer in self.layers if layer.name != _ENVIRONMENT]) is not None

    def values(self) -> dict[str, Any]:
        """Every key with its value, secrets too: to be compared, not shown."""
        return {".".join(key): value for key, value in _flatten(self.settings)}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Every key with its value, secrets masked, and its source."""
        for key, value in _flatten(self.settings):
            if key == ("dicom_store_scp", "host") and value is None:
                yield ".".join(key), json.dumps(self.host), "default"
                continue
            yield ".".join(key), _show(key, value), _source_of(key, self.layers) or "default"


def load(options: Mapping[tuple[str, str], Any], file: Path | None) -> Configuration:
    """Reads and validates the configuration.

    `options` holds what was given on the command line, by section and key.

    Raises:
        ConfigError: with every problem found.
    """
    configuration = examine(options, file)
    if configuration.problems:
        raise ConfigError(*configuration.problems)
    return configuration


def examine(options: Mapping[tuple[str, str], Any], file: Path | None) -> Configuration:
    """As `load`, but the problems are in the result, and each key that has one has its default.

    Raises:
        ConfigError: the file cannot be read.
    """
    warnings: list[str] = []
    problems: list[ConfigProblem] = []
    layers = [
        _source("option", _nest(options), problems),
        _source(_ENVIRONMENT, _environment(warnings, problems), problems),
    ]
    if file is not None:
        layers += _read_file(file, warnings, problems)
    evaluation = file is None and not any("dicom_license_server" in layer.table for layer in layers)
    settings = _validate(layers, file, problems)
    warnings += _decimal_tags(layers)
    if settings.tenants.from_private_element and not settings.tenants.known:
        warnings.append("tenants.known is empty: every instance that carries the private tenant element is refused")
    warnings += _believed_everybody(settings)
    transcoding = settings.transcoding
    if transcoding.timeout > transcoding.instance_timeout:
        warnings.append(
            f"transcoding.timeout ({transcoding.timeout:g} s for one frame) has no effect: "
            f"transcoding.instance_timeout ({transcoding.instance_timeout:g} s for all frames) is shorter"
        )
    found = Configuration(settings, file, tuple(layers), tuple(warnings), evaluation, tuple(problems))
    return replace(found, problems=(*problems, *_cross_checks(found)))


def _validate(layers: list[Source], file: Path | None, problems: list[ConfigProblem]) -> Settings:
    """The settings. What is wrong is taken out of the layers: first by key, then, where others miss it, by section.

    Raises:
        ConfigError: the defaults are wrong where the process was started.
    """
    for is_first in (True, False):
        try:
            return Settings.model_validate(_merged(layers, file))
        except ValidationError as error:
            found = error.errors(include_url=False)
            if is_first:
                problems += [_problem(one["type"], one["msg"], _location(one), one["input"], layers) for one in found]
            for one in found:
                _take_out(layers, _location(one) if is_first else _location(one)[:1])
    try:
        return Settings.model_validate(_merged(layers, file))
    except ValidationError:
        raise ConfigError(*problems) from None


def _location(error: Mapping[str, Any]) -> Location:
    return tuple(map(str, error["loc"]))


def _merged(layers: list[Source], file: Path | None) -> Layer:
    merged: Layer = {}
    for layer in reversed(layers):
        merged = _merge(merged, layer.table)
    _certificate_defaults(merged, file)
    return merged


def _take_out(layers: list[Source], location: Location) -> None:
    """Removes a value, or the list that it is in, from every layer."""
    for layer in layers:
        table = layer.table
        for part in location[:-1]:
            inner = table.get(part)
            if not isinstance(inner, dict):
                table.pop(part, None)
                break
            table = inner
        else:
            table.pop(location[-1], None)


def _nest(options: Mapping[tuple[str, str], Any]) -> Layer:
    layer: Layer = {}
    for (section, key), value in options.items():
        layer.setdefault(section, {})[key] = value
    return layer


def _environment(warnings: list[str], problems: list[ConfigProblem]) -> Layer:
    """`STORESCP_SECTION__KEY`, or a whole `STORESCP_SECTION`; lists and tables are JSON."""
    layer: Layer = {}
    for name, text in sorted(os.environ.items()):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        location = tuple(name[len(ENV_PREFIX) :].lower().split(_DELIMITER))
        if location[0] not in Settings.model_fields and location[0] not in OTHER_SECTION_NAMES:
            warnings += _of_no_section(name, text)
            continue
        info = _field_at(_first_name(location))
        value: Any = text
        if len(location) == 1 or (info is not None and _mentions(info.annotation, tuple)):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                problems.append(_no_json(name, text, location, info))
                continue
        table = layer
        for part in location[:-1]:
            inner = table.setdefault(part, {})
            # A section that is no table is told when the values are checked.
            table = inner if isinstance(inner, dict) else {}
        table[location[-1]] = value
    return layer


def _no_json(name: str, text: str, location: Location, info: FieldInfo | None) -> ConfigProblem:
    """A variable whose value is not JSON; the value is shown where no secret may be in it."""
    key, source = ".".join(location), f"{_ENVIRONMENT} variable {name}"
    if info is None or not _mentions(info.annotation, tuple):
        return ConfigProblem(key, None, "a table in JSON", source)
    shown = None if _model_of(info.annotation) else _shortened(json.dumps(text))
    return ConfigProblem(key, shown, f"{_list_expected(info)} in JSON", source)


def _of_no_section(name: str, text: str) -> Iterator[str]:
    """A warning that a variable is ignored, with the name that was meant."""
    is_link = _SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_URL.match(text))
    if is_link or name == _FAIL_POINT:
        return
    keys = {key: f"{ENV_PREFIX}{_DELIMITER.join(key).upper()}" for key, _ in _keys()}
    given = name[len(ENV_PREFIX) :].lower()
    meant = [variable for key, variable in keys.items() if key[-1] == given]
    others = {f"{ENV_PREFIX}{_DELIMITER.join(other).upper()}": keys[key] for other, key in OTHER_KEY_NAMES.items()}
    close = difflib.get_close_matches(name.upper(), [*keys.values(), *others], 1, _SIMILAR)
    meant = meant or [others.get(variable, variable) for variable in close]
    yield f"environment variable {name} is not known and is ignored{_did_you_mean(meant)}"


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _keys() -> Iterator[tuple[Location, FieldInfo]]:
    """Every key of every section."""
    for section, info in Settings.model_fields.items():
        model = _model_of(info.annotation)
        for key, inner in model.model_fields.items() if model is not None else ():
            yield (section, key), inner


def _field_at(location: Sequence[str]) -> FieldInfo | None:
    """The key at a location, None where there is none of that name. Numbers of a list's entries are passed over."""
    model: type[BaseModel] | None = Settings
    info: FieldInfo | None = None
    for part in location:
        if part.isdecimal() and info is not None and _mentions(info.annotation, tuple):
            continue
        info = model.model_fields.get(part) if model is not None else None
        if info is None:
            return None
        model = _model_of(info.annotation)
    return info


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The table that a type stands for, also in a list or where it may be absent."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(_model_of, get_args(annotation)) if model), None)


def _mentions(annotation: Any, kind: type) -> bool:
    """Whether a type is another one, or has it as a part."""
    if annotation is kind or getattr(annotation, "__origin__", None) is kind:
        return True
    return any(_mentions(part, kind) for part in get_args(annotation))


def _first_name(location: Location) -> Location:
    """The name of a key that may be given by another one."""
    section, *rest = location
    return OTHER_KEY_NAMES.get(location) or (OTHER_SECTION_NAMES.get(section, section), *rest)


def _source(name: str, given: Layer, problems: list[ConfigProblem]) -> Source:
    """Keys get their first name, so that a source beats another one whichever name each uses."""
    table: Layer = {}
    written: dict[Location, str] = {}
    for section, inner in given.items():
        if not isinstance(inner, dict):
            table[_first_name((section,))[0]] = inner
            continue
        for key, value in inner.items():
            first = _first_name((section, key))
            kept = table.setdefault(first[0], {})
            if not isinstance(kept, dict):
                continue
            if first[1] in kept:
                names = f"{written.get(first) or '.'.join(first)} and {section}.{key}"
                problems.append(ConfigProblem(".".join(first), None, f"one of the two names {names}, not both", name))
                continue
            kept[first[1]] = value
            if first != (section, key):
                written[first] = f"{section}.{key}"
        table.setdefault(_first_name((section,))[0], {})
    return Source(name, table, written)


def _read_file(file: Path, warnings: list[str], problems: list[ConfigProblem]) -> list[Source]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(ConfigProblem("--config", str(file), f"a readable file ({reason})", "option")) from None
    is_json = file.suffix.lower() == ".json" or text.lstrip().startswith("{")
    try:
        layer: Layer = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        raise ConfigError(ConfigProblem("--config", str(file), f"valid {kind} ({error})", "option")) from None
    if not isinstance(layer, dict):
        raise ConfigError(ConfigProblem("--config", str(file), "a table of sections", "option"))
    source = _source(str(file), layer, problems)
    sources = [source]
    if is_json:
        given, defaults = _adopt_application_json(source, warnings)
        sources = [replace(source, table=given), Source(_ORIGINAL_DEFAULTS, defaults)]
    _resolve_paths(sources[0].table, file.absolute().parent)
    return sources


def _adopt_application_json(source: Source, warnings: list[str]) -> tuple[Layer, Layer]:
    """wado-storescp's application.json: shared with other services, so what is not ours is left alone.

    What the file says, and what wado-storescp does where the file says nothing.
    """
    adopted: Layer = {}
    ignored: list[str] = []
    private: dict[str, Any] = {}
    for section, table in source.table.items():
        if section in _PRIVATE_TAG:
            private[section] = table
            continue
        info = Settings.model_fields.get(section)
        model = _model_of(info.annotation) if info else None
        if model is None:
            _ignore(section, (section,), ignored, warnings)
            continue
        if not isinstance(table, dict):
            adopted[section] = table
            continue
        own = rdkafka.adopt(table, warnings) if section == "kafka" else table
        for key, value in own.items():
            if key in _PRIVATE_TAG:
                private[key] = value
            elif key in model.model_fields:
                adopted.setdefault(section, {})[key] = value
            else:
                written = source.written.get((section, key), f"{section}.{key}")
                _ignore(written, (section, key), ignored, warnings)
    defaults: Layer = {
        "dicom_store_scp": {"required_attributes": list(_ORIGINAL_REQUIRES)},
        "message_queue": {"created_time": "local"},
    }
    if private:
        # The element that names the tenant turns it on.
        defaults["tenants"] = {"from_private_element": True}
        tenants = adopted.setdefault("tenants", {})
        for key, value in private.items() if isinstance(tenants, dict) else ():
            tenants.setdefault(_PRIVATE_TAG[key], value)
    if ignored:
        warnings.append("ignored in the configuration file: " + ", ".join(ignored))
    return adopted, defaults


def _ignore(written: str, location: Location, ignored: list[str], warnings: list[str]) -> None:
    """A key or section of another service belongs to the routine; one that looks like ours is told by itself."""
    meant = [] if written in _ORIGINAL_ONLY else _similar_in_table(location, _SIMILAR)
    if meant:
        warnings.append(f"{written} in the configuration file is not known and is ignored{_did_you_mean(meant)}")
    else:
        ignored.append(written)


def _decimal_tags(layers: Sequence[Source]) -> Iterator[str]:
    """Numbers of an element in text without 0x: people write those in hexadecimal."""
    for location in _TAG_KEYS:
        given = (table.get(location[1]) for layer in layers if isinstance(table := layer.table.get(location[0]), dict))
        value = next((one for one in given if one is not None), None)
        if isinstance(value, str) and (text := value.strip()).isdecimal():
            read = f"read as decimal {int(text)} = 0x{int(text):04X}"
            yield f'{".".join(location)} = "{text}": {read}; write 0x{text} for hexadecimal'


def _believed_everybody(settings: Settings) -> Iterator[str]:
    """Networks of load balancers that hold every address."""
    for network in settings.dicom_store_scp.proxy_protocol_from:
        if ipaddress.ip_network(network, strict=False).prefixlen == 0:
            yield (
                f"dicom_store_scp.proxy_protocol_from has {network}, which is every address: whoever connects can "
                "claim any address in a PROXY header; name the addresses of the load balancers only"
            )


def _resolve_paths(layer: Layer, base: Path) -> None:
    """Relative paths in a file are relative to the file."""
    _resolve_tables(layer, Settings, base)
    index = layer.get("index")
    if isinstance(index, dict) and isinstance(index.get("database"), str):
        scheme, separator, path = index["database"].partition(":///")
        if separator and scheme.startswith("sqlite") and path and path != ":memory:":
            index["database"] = f"{scheme}:///{_beside(path, base)}"
    audit = layer.get("audit")
    if isinstance(audit, dict) and str(audit.get("destination", "")).startswith("file:"):
        path = str(audit["destination"]).removeprefix("file:").removeprefix("//")
        audit["destination"] = f"file:{_beside(path, base) if path else path}"


def _resolve_tables(table: Layer, model: type[BaseModel], base: Path) -> None:
    for key, value in table.items():
        info = model.model_fields.get(key)
        if info is None:
            continue
        inner = _model_of(info.annotation)
        if inner is not None:
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, dict):
                    _resolve_tables(entry, inner, base)
        elif isinstance(value, str) and _mentions(info.annotation, Path):
            table[key] = _beside(value, base)


def _beside(path: str, base: Path) -> str:
    """A path from a folder; one that begins with `~` is absolute, and is expanded where it is checked."""
    return path if path.startswith("~") else str(base / path)


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


def _problem(kind: str, message: str, location: Location, value: Any, layers: Sequence[Source]) -> ConfigProblem:
    """What pydantic says of a value."""
    key, source = ".".join(location), _nearest_source(location, layers)
    if kind == "extra_forbidden":
        return ConfigProblem(key, None, f"a known key{_did_you_mean(_similar_keys(location))}", source)
    if kind == "missing":
        return ConfigProblem(key, None, "a value (the key is missing)", source)
    info = _field_at(location)
    if kind in ("model_type", "model_attributes_type"):
        wanted = "a table"
    elif kind == "tuple_type":
        wanted = "a list" if info is None else _list_expected(info)
    else:
        said = message.removeprefix("Value error, ").removeprefix("Input should be ")
        wanted = of_type(kind, info) or said
    return ConfigProblem(key, _show_given(location, value), wanted, source)


def _list_expected(info: FieldInfo) -> str:
    """What a list is called, with an example."""
    if _model_of(info.annotation) is not None:
        return "a list of tables"
    return f"a list, for example {json.dumps(examples(info.annotation))}"


def _similar_keys(location: Location) -> list[str]:
    """The known keys that may be meant: of a similar name in the same table, else of the same name in another one."""
    return _similar_in_table(location, 0.6) or [".".join(key) for key, _ in _keys() if key[-1] == location[-1].lower()]


def _similar_in_table(location: Location, least: float) -> list[str]:
    """The known key of the same table whose name is the most similar, where it is similar enough."""
    *above, name = location
    parent = _field_at(above) if above else None
    model = _model_of(parent.annotation) if parent is not None else None if above else Settings
    if model is not None:
        is_in_list = any(part.isdecimal() for part in above)
        names = {key: key if is_in_list else ".".join((*above, key)) for key in model.model_fields}
        if not above:
            names |= OTHER_SECTION_NAMES
        for other, key in OTHER_KEY_NAMES.items():
            if above == [_first_name(other[:1])[0]]:
                names[other[1]] = ".".join(key)
        return [names[close] for close in difflib.get_close_matches(name.lower(), list(names), 1, least)]
    return []


def _cross_checks(found: Configuration) -> Iterator[ConfigProblem]:
    """What settings say of each other; nothing of those that have a problem by themselves."""
    settings = found.settings
    if found.is_sound("message_queue"):
        topic = settings.message_queue.topic_main
        if topic == settings.message_queue.topic_dicom_receive:
            key = "message_queue.topic_dicom_receive"
            yield ConfigProblem(key, json.dumps(topic), "another topic than topic_main", found.source_of(key))
        if found.is_sound("events") and settings.events.topic in (topic, settings.message_queue.topic_dicom_receive):
            expected = "another topic than those of the records"
            given = json.dumps(settings.events.topic)
            yield ConfigProblem("events.topic", given, expected, found.source_of("events.topic"))
    if found.is_sound("storage", "tenants"):
        yield from _tenant_problems(found)
    if found.is_sound("user_identity", "tls") and settings.user_identity is not None and settings.tls is None:
        key = "user_identity.users"
        expected = "a [tls] section too: passcodes are taken over TLS only"
        yield ConfigProblem(key, json.dumps(str(settings.user_identity.users)), expected, found.source_of(key))
    kafka = settings.kafka
    if found.is_sound("kafka") and kafka is not None and kafka.security_protocol.startswith("SASL"):
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            if getattr(kafka, name) is None:
                expected = f"a value, because kafka.security_protocol is {kafka.security_protocol}"
                yield ConfigProblem(f"kafka.{name}", None, expected, found.source_of("kafka.security_protocol"))


def _tenant_problems(found: Configuration) -> Iterator[ConfigProblem]:
    """A root within another one would look like a tenant of it."""
    settings, source = found.settings, found.source_of("tenants.settings")
    ids = [entry.tenant_id for entry in settings.tenants.settings]
    if len(set(ids)) != len(ids):
        yield ConfigProblem("tenants.settings", json.dumps(ids), "each tenant_id once", source)
    roots = [settings.storage.root]
    for entry in settings.tenants.settings:
        root = entry.storage_root
        if root is None:
            continue
        if any(root != other and (root in other.parents or other in root.parents) for other in roots):
            expected = "a folder that is not within another storage root, nor around one"
            yield ConfigProblem("tenants.settings.storage_root", json.dumps(str(root)), expected, source)
        roots.append(root)


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


def _show(key: Location, value: Any) -> str:
    """A value that is in force, in JSON."""
    if isinstance(value, SecretStr):
        return (
            json.dumps(masking.database_url(value.get_secret_value())) if key == ("index", "database") else masking.MASK
        )
    if key in _TAG_KEYS:
        return f"0x{value:04X}"
    if isinstance(value, tuple | list):
        value = [v.model_dump(mode="json", exclude_none=True) if isinstance(v, BaseModel) else v for v in value]
    return json.dumps(value, default=str)


def _show_given(location: Location, value: Any) -> str | None:
    """A value that was given and is wrong; None where it may be a secret: of an unknown key, or with others inside."""
    info = _field_at(location)
    if info is None:
        return None
    if _mentions(info.annotation, SecretStr):
        return masking.MASK
    if not _is_plain(value) or _may_hold_secret(info.annotation):
        return None
    return _shortened(json.dumps(value, default=str))


def _shortened(shown: str) -> str:
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def _is_plain(value: Any) -> bool:
    """Whether a value has no names in it, behind which a secret may be."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | Path)


def _may_hold_secret(annotation: Any) -> bool:
    """Whether a type is a table that has a secret in it."""
    model = _model_of(annotation)
    if model is None:
        return False
    inner = [info.annotation for info in model.model_fields.values()]
    return any(_mentions(one, SecretStr) or _may_hold_secret(one) for one in inner)


def _nearest_source(location: Location, layers: Sequence[Source]) -> str:
    """Where a key comes from, or the table or list that it is in."""
    while location:
        if source := _source_of(location, layers):
            return _variable(location, layers) if source.partition(",")[0] == _ENVIRONMENT else source
        location = location[:-1]
    return "default"


def _variable(location: Location, layers: Sequence[Source]) -> str:
    """The variable of the environment that sets a key, or the table or list that it is in."""
    written = next((layer.written for layer in layers if layer.name == _ENVIRONMENT), {}).get(location[:2])
    parts = (*written.split("."), *location[2:]) if written else location
    present = {name.upper(): name for name in os.environ}
    for length in range(len(parts), 0, -1):
        name = f"{ENV_PREFIX}{_DELIMITER.join(parts[:length])}".upper()
        if name in present:
            return f"{_ENVIRONMENT} variable {present[name]}"
    return _ENVIRONMENT


def _source_of(location: Location, layers: Sequence[Source]) -> str | None:
    """Where a key comes from."""
    for layer in layers:
        table: Any = layer.table
        for part in location[:-1]:
            table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict) and location[-1] in table:
            return f"{layer.name}, as {layer.written[location]}" if location in layer.written else layer.name
    return None
