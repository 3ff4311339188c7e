"""The pages of the reference, written from the code: `make reference`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined
from pydicom.datadict import dictionary_VR, tag_for_keyword

from storescp import _core, advice
from storescp.cli import main_group
from storescp.conformance import Statement
from storescp.http.health import METRICS, Family
from storescp.quantities import text_of_seconds, text_of_size
from storescp.settings import (
    MOST,
    OTHER_KEY_NAMES,
    OTHER_SECTION_NAMES,
    RECORD_ATTRIBUTES,
    Section,
    Settings,
    Transcoding,
)

_FOLDER = Path(__file__).parent / "reference"
# Of a terminal with 80 columns; wider ones have no longer lines.
_WIDTH = 78


def pages() -> dict[Path, str]:
    """Each page that is written from the code, and its text."""
    texts = {
        "command-line": command_line(),
        "configuration": configuration(),
        "metrics": metrics(),
        "statuses": statuses(),
        "record": record(),
        "conformance": Statement(Settings()).markdown,
    }
    return {_FOLDER / f"{name}.md": text for name, text in texts.items()}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """Every command with its help, as it prints it."""
    parts = ["# Command line", "", "`storescpd` and `python -m storescp` are the same program.", ""]
    for context in _contexts("storescpd", main_group, None):
        parts += [f"## {context.command_path}", "", "```text", context.get_help(), "```", ""]
    parts += [
        "## Exit codes",
        "",
        _table(
            ("code", "when"),
            (
                ("0", "done; the service: stopped in order, even where the deadline ended associations"),
                ("1", "a command found, or had, a failure"),
                ("2", "a bad option"),
                ("69", "the address cannot be bound"),
                ("70", "a bug"),
                (
                    "75",
                    "what may pass by itself: the storage root is in use by another process, not mounted, full",
                ),
                ("77", "the licence"),
                ("78", "the configuration, or a folder or file without the permission that is needed"),
                ("143, 130", "the second signal"),
            ),
        ),
    ]
    return "\n".join(parts)


def _contexts(name: str, command: click.Command, parent: click.Context | None) -> Iterator[click.Context]:
    """A command and those beneath it, each as it is called."""
    context = click.Context(command, parent, name, terminal_width=_WIDTH, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for inner, subcommand in command.commands.items():
            yield from _contexts(inner, subcommand, context)


def configuration() -> str:
    """Every key of every section."""
    parts = [
        "# Configuration",
        "",
        "A TOML file, or wado-storescp's `application.json` with the same names. An option of the command line beats",
        "the environment (`STORESCP_SECTION__KEY`; lists and tables as JSON), which beats the file, which beats the",
        "default. `storescpd check-config` prints every value, where it comes from, and everything that would refuse a",
        "start. Unknown keys are an error, unknown variables a warning. Relative paths are relative to the file.",
        "",
        'A value in bytes is a number, or a text with a unit: `"10 GiB"`, `"500 MB"` (B, kB, MB, GB, TB, KiB, MiB,',
        'GiB, TiB). So is a value in seconds or milliseconds: `"7 d"`, `"30 min"`, `"500 ms"` (ms, s, min, h, d).',
        "",
    ]
    for name, info in Settings.model_fields.items():
        parts += _section(name, _model_of(info.annotation))
        if name != "dicom_license_server" and type(None) in get_args(info.annotation):
            parts += ["Off where the section is absent.", ""]
    return "\n".join(parts)


def _section(name: str, model: type[BaseModel], brackets: str = "[{}]") -> list[str]:
    properties = model.model_json_schema()["properties"]
    about = (model.__doc__ or "").partition(": ")[2].strip()
    parts = [f"## {brackets.format(name)}", ""]
    if about:
        parts += [about[0].upper() + about[1:], ""]
    others = [f"`[{other}]`" for other, first in OTHER_SECTION_NAMES.items() if first == name]
    if others:
        parts += [f"The section may also be called {' or '.join(others)}.", ""]
    rows, inner = [], []
    for key, info in model.model_fields.items():
        nested = _model_of(info.annotation)
        if nested is not None:
            inner += _section(f"{name}.{key}", nested, "[[{}]]")
        unit = _option(properties[key]).get("unit", "")
        meaning = f"{info.description or ''}{_other_names(name, key)}"
        rows.append((f"`{key}`", meaning, _default(info, unit), _bounds(properties[key])))
    return [*parts, _table(("key", "meaning", "default", "values"), rows), "", *inner]


def _model_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_model_of(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _other_names(section: str, key: str) -> str:
    """The names that stay valid beside this one."""
    others = [".".join(other) for other, first in OTHER_KEY_NAMES.items() if first == (section, key)]
    return "".join(f"; also `{other}`" for other in others)


def _default(info: Any, unit: str) -> str:
    if info.default is PydanticUndefined:
        return "required"
    value = info.default
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value == Transcoding.model_fields["viewer_transfer_syntaxes"].default:
        return f"the {len(value)} that CornerstoneJS reads"
    if isinstance(value, float):
        value = _shortest(value)
    if unit and (readable := {"bytes": text_of_size, "seconds": text_of_seconds}.get(unit, lambda _: "")(value)):
        return f"`{value}` ({readable})"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, default=str)}`"


def _option(property_: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that is there."""
    options = property_.get("anyOf", [property_])
    return next((option for option in options if option.get("type") != "null"), property_)


def _bounds(property_: dict[str, Any]) -> str:
    option = _option(property_)
    if "$ref" in option:
        return ""
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    if option.get("type") == "array":
        inner = option.get("items", {})
        return "list of tables" if "$ref" in inner else f"list, for example `{json.dumps(inner['examples'])}`"
    lowest = option.get("minimum", option.get("exclusiveMinimum"))
    highest = option.get("maximum") if option.get("maximum") != MOST else None
    kind = _KINDS.get(option.get("type"), "text") if option.get("format") != "path" else "path"
    kind = option.get("unit", kind)
    if lowest is not None and highest is not None:
        return f"{kind}, {'above ' if 'exclusiveMinimum' in option else ''}{lowest} to {_shortest(highest)}"
    return f"{kind}, at least {lowest}" if lowest is not None else kind


def _shortest(number: float) -> float:
    """A number without a fraction as one."""
    return int(number) if number == int(number) else number


_KINDS = {"integer": "number", "number": "number", "boolean": "true or false", "string": "text"}


def metrics() -> str:
    """Every metric."""
    parts = [
        "# Metrics",
        "",
        "`GET /metrics` where `[http]` is configured. Beside these are the `process_*` and `python_*` metrics of the",
        "client library. No label carries a UID of an instance, patient data or free text.",
        "",
    ]
    rows = [
        (
            f"`{_exposed(metric)}`",
            _kind(metric),
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.documentation,
        )
        for metric in METRICS
    ]
    return "\n".join([*parts, _table(("metric", "kind", "labels", "meaning"), rows)])


def _kind(metric: Family) -> str:
    return metric.kind.__name__.removesuffix("MetricFamily").lower()


def _exposed(metric: Family) -> str:
    return f"{metric.name}_total" if _kind(metric) == "counter" else metric.name


_ANOMALIES = (
    "Data sets that PS3.5 does not allow are stored as received where DCMTK, Orthanc or pydicom can follow them, and "
    "answered with 0000. What was odd is named by a code: in the record (`anomalies`), in the log line of the "
    "association, in the metric `storescp_anomalies_total` and on the page. An image whose Pixel Data are concerned "
    "is not transcoded: its record says `Failed`. The code `transcoding_busy` is about the reception instead: no "
    "process was free to transcode the image."
)
# An element of group 0000, which belongs into the command set.
_GROUP_0000 = (0xC000, "element of a group not allowed in a data set")
_REFUSED = (
    "An identifying attribute that occurs twice, fewer bytes than declared, a limit, and readings that identify "
    "different instances are still refused with C000."
)


def statuses() -> str:
    """What a sender is answered, and what to do about it."""
    parts = [
        "# Statuses",
        "",
        "What the Error Comment (0000,0902) of a C-STORE response says, what it means, and what to do.",
        "Comments vary in their words and name the attribute that is concerned. The table has examples: look up the",
        "status.",
        "",
    ]
    rows = []
    for status, comment in (*_core.refusals(), _GROUP_0000):
        found = advice.of_refusal(comment, status)
        rows.append((f"`{status:04X}`", comment, found.meaning, found.remedy))
    parts.append(_table(("status", "Error Comment", "meaning", "what to do"), rows))
    parts += [
        "0000 is answered only for what is stored and recorded; [what that means](../discussion/what-0000-means.md).",
        "Rejected associations are in the [conformance statement](conformance.md).",
        "",
        "## Anomalies",
        "",
        _ANOMALIES,
        "",
        _table(("code", "what was odd"), ((f"`{code}`", text) for code, text in advice.ANOMALIES.items())),
        _REFUSED,
        "",
    ]
    return "\n".join(parts)


def record() -> str:
    """Every field of a record."""
    schema = json.loads(resources.files("storescp").joinpath("record-2.schema.json").read_text(encoding="utf-8"))
    parts = [
        "# Record",
        "",
        schema["description"] + " All fields are always there. JSON Schema: `storescp/record-2.schema.json`.",
        "The schema describes the records of this version, so it allows no other fields and codes.",
        "In Python `storescp.Record.from_json` reads them, and those of version 1.",
        "",
    ]
    example = json.dumps(_RECORD, indent=2)
    rows = [(f"`{name}`", *_field(found, schema)) for name, found in schema["properties"].items()]
    parts.append(_table(("field", "type", "content"), rows))
    prose = (_FOLDER.parent / "parts" / "record.md").read_text(encoding="utf-8")
    parts += ["", prose.replace("{attributes}", _attributes()), "## An example", "", "```json", example, "```", ""]
    return "\n".join(parts)


def _attributes() -> str:
    tags = [(tag_for_keyword(keyword) or 0, keyword) for keyword in RECORD_ATTRIBUTES]
    rows = [(f"`{tag:08X}`", dictionary_VR(tag), f"`{keyword}`") for tag, keyword in sorted(tags)]
    return _table(("key", "VR", "keyword"), rows)


# The record of pydicom's CT_small.dcm.
_RECORD = {
    "trace_id": "01a22cc8-2de8-76e3-9644-4e58801f46ac",
    "worker_node_id": "storage-1",
    "tenant_id": "1234567890",
    "patient_id": "1CT1",
    "study_uid": "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322",
    "series_uid": "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322",
    "sop_uid": "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322",
    "file_path": "/data/1234567890/20040119/1.3.6.1.4.1.5962.1.2.1.20040119072730.12322/"
    "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322/1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322.dcm",
    "file_size": 39206,
    "transfer_syntax_uid": "1.2.840.10008.1.2.1",
    "target_ts": "1.2.840.10008.1.2.1",
    "study_date": "2004-01-19",
    "transfer_status": "NoNeedTransfer",
    "number_of_frames": 1,
    "created_time": "2026-11-30T14:07:26.230303",
    "series_uid_hash": "08990620208495055844",
    "study_uid_hash": "00332093670316092639",
    "accession_number": None,
    "source_ip": "10.1.2.3",
    "source_ae": "CT1",
    "schema_version": 2,
    "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
    "called_ae": "ARCHIVE",
    "anomalies": [],
    "received_at": "2026-11-30T14:07:26.230303Z",
    "file_url": None,
    "dicom_omitted": [],
    "dicom": {
        "00080030": {"vr": "TM", "Value": ["072730"]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00080090": {"vr": "PN"},
        "00080201": {"vr": "SH", "Value": ["-0500"]},
        "00081030": {"vr": "LO", "Value": ["e+1"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "CompressedSamples^CT1"}]},
        "00100030": {"vr": "DA"},
        "00100040": {"vr": "CS", "Value": ["O"]},
        "00200010": {"vr": "SH", "Value": ["1CT1"]},
        "00200011": {"vr": "IS", "Value": [1]},
        "00200013": {"vr": "IS", "Value": [1]},
        "00280010": {"vr": "US", "Value": [128]},
        "00280011": {"vr": "US", "Value": [128]},
        "00280100": {"vr": "US", "Value": [16]},
    },
}


def _field(found: dict[str, Any], schema: dict[str, Any]) -> tuple[str, str]:
    if "$ref" in found:
        name = found["$ref"].rpartition("/")[2]
        base = schema["$defs"][name]
        return "UID" if name == "uid" else "text", found.get("description") or base.get("description", "")
    if "const" in found:
        return "constant", f"`{json.dumps(found['const'])}`"
    if "enum" in found:
        return "one of", found.get("description") or ", ".join(f"`{value}`" for value in found["enum"])
    if found["type"] == "object":
        return "object", f"{found['description']}; [which](#attributes-in-dicom)"
    if found["type"] == "array":
        codes = ", ".join(f"`{code}`" for code in found["items"].get("enum", ()))
        explained = f"; of {codes}; [what each means](statuses.md#anomalies)" if codes else ""
        return "list of texts", found["description"] + explained
    kinds = found["type"] if isinstance(found["type"], list) else [found["type"]]
    names = {"string": "text", "integer": "number", "null": "null"}
    content = [found["description"]]
    if "maxLength" in found:
        content.append(f"at most {found['maxLength']} characters")
    return " or ".join(names[kind] for kind in kinds), "; ".join(content)


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
