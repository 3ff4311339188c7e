"""Views on the tables: conflicts, and what QIDO-RS returns of studies, series and instances as DICOM JSON.

The two databases have other functions for JSON; everything else is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from storescp.index import tables

_NAMES = ("conflict", "qido_study", "qido_series", "qido_instance")


def create(connection: sa.Connection) -> None:
    """Makes the views, in place of those of the same names."""
    json = _Postgres() if connection.dialect.name == "postgresql" else _Sqlite()
    for name, query in zip(_NAMES, (_conflicts(), _studies(json), _series(json), _instances(json)), strict=True):
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")


def _conflicts() -> str:
    """Each value that an instance says and that its row has not."""
    study = "d.tenant_id = r.tenant_id AND d.study_uid = r.study_uid"
    levels = (
        ("study", study, "''", ("patient_id", *tables.OF_STUDY)),
        ("series", f"{study} AND d.series_uid = r.series_uid", "d.series_uid", tables.OF_SERIES),
        ("patient", "d.tenant_id = r.tenant_id AND d.patient_id = r.patient_id AND d.patient_id <> ''", "''",
         tables.OF_PATIENT),
    )  # fmt: skip
    return " UNION ".join(
        f"SELECT d.tenant_id, d.study_uid, {series} AS series_uid, '{name}' AS attribute, "
        f"CAST(d.{name} AS text) AS value, CAST(r.{name} AS text) AS newest "
        f"FROM description d JOIN {table} r ON {where} WHERE d.{name} <> r.{name}"
        for table, where, series, names in levels
        for name in names
    )


@dataclass(frozen=True)
class _Json(ABC):
    """How a database writes JSON. Each method takes and returns SQL."""

    an_object: str = "json_object"
    an_array: str = "json_array"

    def attributes(self, parts: Sequence[tuple[str, str, str, str]]) -> str:
        """A data set of attributes: tag, VR, the column (or expression) that may be null, and its array of values."""
        cells = (
            f"'{tag}', CASE WHEN {column} IS NULL THEN {self.an_object}('vr', '{vr}') "
            f"ELSE {self.an_object}('vr', '{vr}', 'Value', {values}) END"
            for tag, vr, column, values in parts
        )
        return f"{self.an_object}({', '.join(cells)})"

    def plain(self, tag: str, vr: str, column: str) -> tuple[str, str, str, str]:
        """A number, or a text without backslashes."""
        return tag, vr, column, f"{self.an_array}({column})"

    def day(self, tag: str, column: str) -> tuple[str, str, str, str]:
        return tag, "DA", column, f"{self.an_array}(replace({column}, '-', ''))"

    def time(self, tag: str, column: str) -> tuple[str, str, str, str]:
        return tag, "TM", column, f"{self.an_array}(replace({column}, ':', ''))"

    def texts(self, tag: str, vr: str, column: str) -> tuple[str, str, str, str]:
        """Values with backslashes between them; none where the text is empty."""
        return tag, vr, f"nullif({column}, '')", self.split(column, "\\")

    def name(self, tag: str, column: str) -> tuple[str, str, str, str]:
        groups = zip(("Alphabetic", "Ideographic", "Phonetic"), range(3), strict=True)
        cells = ", ".join(f"'{group}', nullif({self.part(column, number)}, '')" for group, number in groups)
        return tag, "PN", column, f"{self.an_array}({self.without_nulls(f'{self.an_object}({cells})')})"

    def sequence(self, tag: str, column: str) -> tuple[str, str, str, str]:
        return tag, "SQ", column, self.parsed(column)

    @abstractmethod
    def split(self, column: str, separator: str) -> str:
        """A JSON array of the parts of a text."""

    @abstractmethod
    def part(self, column: str, number: int) -> str:
        """A part of a text, which has `=` between them; null or empty where it has not so many."""

    @abstractmethod
    def without_nulls(self, value: str) -> str:
        """A JSON object without the members that are null."""

    @abstractmethod
    def parsed(self, column: str) -> str:
        """The JSON of a text."""


class _Sqlite(_Json):
    def split(self, column: str, separator: str) -> str:
        quoted = separator.replace("\\", "\\\\")
        return f"""json('[' || replace(json_quote({column}), '{quoted}', '","') || ']')"""

    def part(self, column: str, number: int) -> str:
        return f"json_extract({self.split(column, '=')}, '$[{number}]')"

    def without_nulls(self, value: str) -> str:
        # RFC 7396: what is null in a patch is removed.
        return f"json(json_patch('{{}}', {value}))"

    def parsed(self, column: str) -> str:
        return f"json({column})"


class _Postgres(_Json):
    def __init__(self) -> None:
        super().__init__("json_build_object", "json_build_array")

    def split(self, column: str, separator: str) -> str:
        return f"to_json(string_to_array({column}, '{separator}'))"

    def part(self, column: str, number: int) -> str:
        return f"split_part({column}, '=', {number + 1})"

    def without_nulls(self, value: str) -> str:
        return f"json_strip_nulls({value})"

    def parsed(self, column: str) -> str:
        return f"CAST({column} AS json)"


def _availability(json: _Json) -> tuple[str, str, str, str]:
    """Of whatever is listed."""
    return json.plain("00080056", "CS", "CAST('ONLINE' AS text)")


def _studies(json: _Json) -> str:
    """PS3.18 Table 10.6.3-3, without Retrieve URL."""
    found = json.attributes(
        [
            json.day("00080020", "s.study_date"),
            json.time("00080030", "s.study_time"),
            json.texts("00080050", "SH", "s.accession_number"),
            _availability(json),
            json.texts("00080061", "CS", "s.modalities"),
            json.name("00080090", "s.referring_physician_name"),
            json.texts("00080201", "SH", "s.timezone_offset_from_utc"),
            json.texts("00081030", "LO", "s.study_description"),
            json.name("00100010", "p.patient_name"),
            json.texts("00100020", "LO", "s.patient_id"),
            json.day("00100030", "p.patient_birth_date"),
            json.texts("00100040", "CS", "p.patient_sex"),
            json.plain("0020000D", "UI", "s.study_uid"),
            json.texts("00200010", "SH", "s.study_id"),
            json.plain("00201206", "IS", "s.series_count"),
            json.plain("00201208", "IS", "s.instance_count"),
        ]
    )
    return (
        f"SELECT s.tenant_id, s.study_uid, {found} AS dicom FROM study s "
        "JOIN patient p ON p.tenant_id = s.tenant_id AND p.patient_id = s.patient_id"
    )


def _series(json: _Json) -> str:
    """PS3.18 Table 10.6.3-4, without Retrieve URL."""
    found = json.attributes(
        [
            json.texts("00080060", "CS", "e.modality"),
            _availability(json),
            json.texts("00080201", "SH", "s.timezone_offset_from_utc"),
            json.texts("0008103E", "LO", "e.series_description"),
            json.texts("00180015", "CS", "e.body_part_examined"),
            json.plain("0020000D", "UI", "e.study_uid"),
            json.plain("0020000E", "UI", "e.series_uid"),
            json.plain("00200011", "IS", "e.series_number"),
            json.plain("00201209", "IS", "e.instance_count"),
            json.day("00400244", "e.performed_procedure_step_start_date"),
            json.time("00400245", "e.performed_procedure_step_start_time"),
            json.sequence("00400275", "e.request_attributes_sequence"),
        ]
    )
    return (
        f"SELECT e.tenant_id, e.study_uid, e.series_uid, {found} AS dicom FROM series e "
        "JOIN study s ON s.tenant_id = e.tenant_id AND s.study_uid = e.study_uid"
    )


def _instances(json: _Json) -> str:
    """PS3.18 Table 10.6.3-5, without Retrieve URL and Timezone Offset From UTC."""
    found = json.attributes(
        [
            json.plain("00080016", "UI", "nullif(i.sop_class_uid, '')"),
            json.plain("00080018", "UI", "i.sop_uid"),
            _availability(json),
            json.plain("0020000D", "UI", "i.study_uid"),
            json.plain("0020000E", "UI", "i.series_uid"),
            json.plain("00200013", "IS", "i.instance_number"),
            json.plain("00280008", "IS", "i.number_of_frames"),
            json.plain("00280010", "US", 'i."rows"'),
            json.plain("00280011", "US", 'i."columns"'),
            json.plain("00280100", "US", "i.bits_allocated"),
        ]
    )
    return f"SELECT i.tenant_id, i.study_uid, i.series_uid, i.sop_uid, i.study_date, {found} AS dicom FROM instance i"
