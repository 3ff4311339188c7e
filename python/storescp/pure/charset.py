"""Text in its Specific Character Set (PS3.3 C.12.1.1.2, PS3.5 Chapter 6), by the codecs of Python.

The same rules as the Rust core's: the first reading of a value that leaves nothing open is taken, and what no reading
explains becomes U+FFFD.
"""

from __future__ import annotations

import re
from functools import lru_cache

_ESC = 0x1B
_REPLACEMENT = "\ufffd"
_MOST_TERMS = 16
_LONGEST_NAME = 24

# A set names the codec of the bytes above 7F: "" has none of them.
_UTF_8, _CHINESE, _KOREAN, _SHIFT_JIS, _EUC_JP, _BIG5 = "utf-8", "gb18030", "cp949", "cp932", "euc_jp", "cp950"
_MULTIPLE = frozenset({_UTF_8, _CHINESE, _KOREAN, _SHIFT_JIS, _EUC_JP, _BIG5})
_LATIN_1, _THAI, _NOTHING = "latin-1", "tis-620", ""
_ASCII, _JAPANESE, _UNKNOWN = "ascii", "iso2022_jp", "unknown"

_NAMES = {
    _ASCII: "6 646 646US US ASCII USASCII ANSIX341968 ANSIX341986 DEFAULT",
    _JAPANESE: "87 159 168 JP JP1 JP2 JP3 JP2004 JPEXT 2022JP JISX0208 JISX0212 JIS",
    _UTF_8: "192 190 191 196 UTF8 U8 UTF UTF8SIG UTF8UCS2 UTF8UCS4 UNICODE UNICODE11UTF8 10646 106461 CP65001 65001",
    _CHINESE: "58 165 GB2312 GB231280 GB23121980 CHINESE 58GB231280 EUCCN EUCGB2312CN CNGB GBK XGBK CP936 MS936 "
    "WINDOWS936 936 GB18030 GB180302000 GB180302005 GB180302022 18030 XMACSIMPCHINESE",
    _BIG5: "B5 BIG5 BIG5TW BIG5HKSCS HKSCS CP950 MS950 WINDOWS950 950 XMACTRADCHINESE",
    _KOREAN: "149 KR EUCKR KOREAN KSC5601 KSC56011987 KSX1001 CP949 MS949 UHC WINDOWS949 949 XMACKOREAN",
    _SHIFT_JIS: "13 14 JISX0201 SHIFTJIS SHIFTJIS2004 SHIFTJISX0213 SJIS SJIS2004 SJISX0213 XSJIS MSKANJI CP932 MS932 "
    "WINDOWS31J WINDOWS932 932 XMACJAPANESE",
    _EUC_JP: "EUCJP UJIS XEUCJP EUCJIS2004 EUCJISX0213 JISX0213",
    _LATIN_1: "100 LATIN LATIN1 L1 CP819 IBM819 819 8859 88591",
    "iso8859_2": "101 LATIN2 L2 88592",
    "iso8859_3": "109 LATIN3 L3 88593",
    "iso8859_4": "110 LATIN4 L4 88594",
    "iso8859_5": "144 CYRILLIC LATINCYRILLIC 88595",
    "iso8859_6": "127 ARABIC LATINARABIC ASMO708 ECMA114 88596",
    "iso8859_7": "126 GREEK GREEK8 LATINGREEK ELOT928 ECMA118 88597",
    "iso8859_8": "138 HEBREW LATINHEBREW 88598 88598E 88598I",
    "iso8859_9": "148 LATIN5 L5 88599",
    "iso8859_10": "157 LATIN6 L6 885910",
    _THAI: "166 THAI TIS620 TIS6200 TIS62025290 TIS62025291 TIS6202533 885911",
    "iso8859_13": "179 LATIN7 L7 885913",
    "iso8859_14": "199 LATIN8 L8 CELTIC 885914",
    "iso8859_15": "203 LATIN9 L9 885915",
    "iso8859_16": "226 LATIN10 L10 885916",
    "koi8_r": "KOI8R KOI8",
    "koi8_u": "KOI8U",
    "cp866": "866 866U 1125 RUSCII",
    "cp874": "874",
    **{f"cp{page}": str(page) for page in range(1250, 1259)},
}
_CODECS = {name: codec for codec, names in _NAMES.items() for name in names.split()}
_CODE_PAGE = re.compile(r"(?:WINDOWS|CP|WIN|IBM|MS)(\d{3,4})")
# ISO 8859-5:1988.
_DATED = re.compile(r"(8859.*)(?:198[789]|199[289]|200[13])")

# PS3.3 Tables C.12-3 and C.12-4, and the other registered sequences of the same sets: what they put into G0 and G1.
_LOWER = {
    b"$(D": "jisx0212",
    b"$(B": "jisx0208",
    b"$(@": "jisx0208",
    b"$(C": "ksx1001",
    b"$(A": "gb2312",
    b"$B": "jisx0208",
    b"$@": "jisx0208",
    b"$A": "gb2312",
    b"(B": "",
    b"(J": "",
    b"(I": "katakana",
}
_UPPER: dict[bytes, str | None] = {
    b"$)C": _KOREAN,
    b"$)A": _CHINESE,
    b"$)E": _CHINESE,
    b")I": _SHIFT_JIS,
    b"%G": _UTF_8,
    b"%@": None,
    b"-A": _LATIN_1,
    b"-B": "iso8859_2",
    b"-C": "iso8859_3",
    b"-D": "iso8859_4",
    b"-L": "iso8859_5",
    b"-G": "iso8859_6",
    b"-F": "iso8859_7",
    b"-H": "iso8859_8",
    b"-M": "iso8859_9",
    b"-T": _THAI,
    b"-V": "iso8859_10",
    b"-Y": "iso8859_13",
    b"-_": "iso8859_14",
    b"-b": "iso8859_15",
    b"-f": "iso8859_16",
}

# cp932 has six characters of JIS X 0208 at other code points than the other codecs have.
_OF_JIS = str.maketrans("\uff5e\u2225\uff0d\uffe0\uffe1\uffe2", "\u301c\u2016\u2212\xa2\xa3\xac")

# GB 18030-2022 and three other tables, where Python has older ones.
_FIXES = {
    (_CHINESE, "80"): "\u20ac",
    (_CHINESE, "a3a0"): "\u3000",
    (_CHINESE, "a8bc"): "\u1e3f",
    **{(_CHINESE, f"a6{trail:x}"): chr(0xFE10 + n) for n, trail in enumerate((0xD9, 0xDB, 0xDA, *range(0xDC, 0xE0)))},
    **{(_CHINESE, f"a6{trail:x}"): chr(0xFE17 + n) for n, trail in enumerate((0xEC, 0xED, 0xF3))},
    **{
        (_CHINESE, f"fe{trail:x}"): chr(0x9FB4 + n)
        for n, trail in enumerate((0x59, 0x61, 0x66, 0x67, 0x6D, 0x7E, 0x90, 0xA0))
    },
    (_BIG5, "f9fe"): "\uffed",
    (_EUC_JP, "8fa2b7"): "\u301c",
    ("koi8_u", "ae"): "\u045e",
    ("koi8_u", "be"): "\u040e",
    ("cp1255", "ca"): "\u05ba",
}


def decode(value: bytes, character_set: bytes) -> tuple[str, bool]:
    """Decodes a value under the value of (0008,0005), which is empty where absent.

    Returns:
        The text with its control characters, and whether it is doubtful: U+FFFD was put in, or no known term declares
        the bytes above 7F.
    """
    if value.isascii() and _ESC not in value:
        return value.decode("ascii"), False
    text, is_doubtful = _decode_by_set(value, readings(character_set))
    return text.removeprefix("\ufeff"), is_doubtful


def _decode_by_set(value: bytes, found: tuple[tuple[str, bool], ...]) -> tuple[str, bool]:
    for codec, is_declared in found:
        text, is_complete, uses_initial = _follow(value, codec)
        if is_complete:
            return text, uses_initial and not is_declared
    fallback = next((codec for codec, is_declared in found if is_declared), found[-1][0])
    return _follow(value, fallback)[0], True


@lru_cache(maxsize=256)
def readings(character_set: bytes) -> tuple[tuple[str, bool], ...]:
    """The ways to read the bytes above 7F, the most probable one first: codec, and whether a term declares it."""
    terms = [_term(value) for value in re.split(rb"[\\,;]", character_set)[:_MOST_TERMS]]
    named = next((term for term in terms if term is not None), None)
    found: dict[str, bool] = {}
    if named == _ASCII:
        # Orthanc reads ASCII as UTF-8.
        found[_UTF_8] = True
    elif named == _UNKNOWN:
        found[_UTF_8] = _UTF_8 in terms
    elif named not in _MULTIPLE and _UTF_8 in terms:
        found[_UTF_8] = True
    for term in terms:
        if term not in (None, _ASCII, _JAPANESE, _UNKNOWN):
            found.setdefault(term, True)
    if terms[0] == _JAPANESE:
        found.setdefault(_SHIFT_JIS, False)
        found.setdefault(_NOTHING, False)
    elif terms[0] in (None, _ASCII, _UNKNOWN):
        found.setdefault(_LATIN_1, False)
    return tuple(found.items())


def _term(value: bytes) -> str | None:
    if not value.strip(bytes(range(0x21))):
        return None
    name = "".join(chr(byte) for byte in value if byte < 0x80 and chr(byte).isalnum()).upper()
    if len(name) > _LONGEST_NAME:
        return _UNKNOWN
    for prefix in ("CS", "ISO", "2022", "IR", "IEC"):
        name = name.removeprefix(prefix)
    if bare := _CODE_PAGE.fullmatch(name) or _DATED.fullmatch(name):
        name = bare[1]
    return _CODECS.get(name, _UNKNOWN)


def _follow(value: bytes, initial: str) -> tuple[str, bool, bool]:
    """Decodes with escape sequences (PS3.5 6.1.2.5).

    Returns:
        The text, whether nothing had to be replaced, and whether bytes above 7F were read in the initial set.
    """
    parts: list[str] = []
    is_complete, uses_initial = True, False
    lower: str = ""
    upper: str | None = None
    at = 0
    while at < len(value):
        byte, character, size = value[at], None, 1
        if byte == _ESC:
            sequence = _sequence(value, at + 1)
            if sequence is not None:
                lower = _LOWER.get(sequence, lower)
                upper = _UPPER.get(sequence, upper)
                character, size = "", len(sequence) + 1
        elif byte >= 0x80:
            uses_initial |= upper is None
            character, size = _first(initial if upper is None else upper, value[at : at + 4])
        elif 0x21 <= byte <= 0x7E and lower not in ("", "katakana"):
            character, size = _pair(lower, value[at : at + 2])
        elif 0x21 <= byte < 0x60 and lower == "katakana":
            character = bytes([byte | 0x80]).decode(_SHIFT_JIS)
        else:
            # PS3.5 6.1.2.5.3: the initial sets are active again after these.
            if byte in b"\\\t\n\f\r":
                lower, upper = "", None
            character = chr(byte)
        is_complete &= character is not None
        parts.append(_REPLACEMENT if character is None else character)
        at += size
    return "".join(parts), is_complete, uses_initial


def _sequence(value: bytes, at: int) -> bytes | None:
    for length in (3, 2):
        sequence = value[at : at + length]
        if sequence in _LOWER or sequence in _UPPER:
            return sequence
    return None


def _pair(lower: str, pair: bytes) -> tuple[str | None, int]:
    if len(pair) < 2 or not 0x21 <= pair[1] <= 0x7E:
        return None, 1
    upper = bytes(byte | 0x80 for byte in pair)
    if lower == "jisx0208":
        return _of_jis0208(upper), 2
    if lower == "jisx0212":
        found = _character(_EUC_JP, b"\x8f" + upper)
        return "~" if found == "\u301c" else found, 2
    return _character(_KOREAN if lower == "ksx1001" else _CHINESE, upper), 2


def _of_jis0208(pair: bytes) -> str | None:
    """Through Shift-JIS: cp932 has the rows of vendors that euc_jp lacks."""
    row, cell = pair[0] - 0xA1, pair[1] - 0xA1
    if not (0 <= row < 94 and 0 <= cell < 94):
        return None
    lead = row // 2 + (0x81 if row < 62 else 0xC1)
    trail = cell + 0x9F if row % 2 else cell + (0x40 if cell < 63 else 0x41)
    return _character(_SHIFT_JIS, bytes([lead, trail]))


def _first(codec: str, value: bytes) -> tuple[str | None, int]:
    """The character that `value` begins with, and how many bytes it takes."""
    if codec == _NOTHING:
        return None, 1
    if codec == _UTF_8:
        return _first_of_utf_8(value)
    width = _width(codec, value) if codec in _MULTIPLE else 1
    found = _character(codec, value[:width]) if len(value) >= width else None
    if found is not None:
        return found, width
    # A second byte that is ASCII is read again by itself.
    return None, 2 if width > 1 and value[1] >= 0x80 else 1


def _width(codec: str, value: bytes) -> int:
    lead, second = value[0], value[1] if len(value) > 1 else 0
    if codec == _SHIFT_JIS and 0xA1 <= lead <= 0xDF:
        return 1
    if codec == _EUC_JP and lead == 0x8F and len(value) > 1:
        return 3
    if codec == _CHINESE and 0x81 <= lead <= 0xFE and 0x30 <= second <= 0x39:
        return 4
    return 2 if 0x81 <= lead <= 0xFE and second >= 0x30 else 1


def _first_of_utf_8(value: bytes) -> tuple[str | None, int]:
    try:
        return (character := value.decode()[0]), len(character.encode())
    except UnicodeDecodeError as error:
        if error.start:
            return (character := value[: error.start].decode()[0]), len(character.encode())
        return None, error.end


def _character(codec: str, value: bytes) -> str | None:
    if fixed := _FIXES.get((codec, value.hex())):
        return fixed
    if codec in (_SHIFT_JIS, _EUC_JP):
        return _japanese_character(codec, value)
    if (
        codec == _BIG5
        and not 0xA140 <= int.from_bytes(value) <= 0xC6A0
        and not 0xC940 <= int.from_bytes(value) <= 0xF9FE
    ):
        # The extensions for Hong Kong, which other vendors use for other characters.
        return None
    try:
        return value.decode(codec)
    except UnicodeDecodeError:
        is_control = codec not in _MULTIPLE and 0x80 <= value[0] <= (0xA0 if codec == _THAI else 0x9F)
        return chr(value[0]) if is_control else None


def _japanese_character(codec: str, value: bytes) -> str | None:
    if codec == _EUC_JP and len(value) == 2 and value[0] != 0x8E:
        return _of_jis0208(value)
    # cp932 has private code points for these single bytes.
    if codec == _SHIFT_JIS and value[0] in b"\xa0\xfd\xfe\xff":
        return None
    try:
        return value.decode(codec).translate(_OF_JIS)
    except UnicodeDecodeError:
        return None
