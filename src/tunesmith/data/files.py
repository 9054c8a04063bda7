"""Files named as data: what kind they are is told by their content, and their text stays as it is
written.

Every field of a CSV is text. A string of JSON is taken as decoded, every other value of a row as
its slice of the file, since a number that was read and written again is often another text (1.50,
1e5). Parquet has types; DuckDB reads it.
"""

import bz2
import codecs
import csv
import glob
import gzip
import io
import json
import lzma
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from tunesmith.data.text import Broken, Raw, Value, is_unicode
from tunesmith.errors import (
    InvalidOptionValue,
    NoSuchFile,
    TwoColumns,
    UnreadableFile,
    UnreadableInput,
)

Record = dict[str, Value]

ENDINGS = (
    ".parquet",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".ndjson",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".txt",
)
_QUERY = re.compile(
    r"\s*(\(|--|/\*.*\*/|(select|from|with|values|table|describe|show|pivot|unpivot|summarize)(?=[\s(]))",
    re.I | re.S,
)
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"SQLite format 3": "a SQLite database",
    b"%PDF": "a PDF",
    b"ARROW1": "an Arrow file",
    b"\xd0\xcf\x11\xe0": "an old Office document",
}
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WANTED = {"prompt", "completion", "messages"}
_MOST_NUMBERS = 10  # line numbers in an error
_decoder: Any = json.JSONDecoder(
    parse_int=Raw, parse_float=Raw
)  # a number of any length, since its slice is what counts
_scan, _string = _decoder.scan_once, json.decoder.__dict__["scanstring"]
_SPACE = re.compile(r"[ \t\r\n]*")


def named(data: str) -> list[Path]:
    """The files that a text names: a file, a folder's files or a glob's; none where it is a query.
    NoSuchFile where a file is meant."""
    is_marked = data.lstrip().startswith("@")
    name = data.lstrip().removeprefix("@")
    name = name if _exists(name) else name.strip()  # a name may end with a space
    if not name or (not is_marked and _QUERY.match(name) and not _exists(name)):
        return []
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # a user that is not there
        raise NoSuchFile(path=name, folder=str(Path.cwd())) from None
    if _exists(str(path)):
        return _inside(path) if path.is_dir() else [path]
    if any(c in name for c in "*?[") and "\n" not in name:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if found:
            return found
    if is_marked or name.lower().endswith(ENDINGS):
        raise NoSuchFile(path=name, folder=str(Path.cwd()))
    return []


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (ValueError, OSError):  # a NUL within, or longer than any name
        return False


def _inside(folder: Path) -> list[Path]:
    found = sorted(
        p for p in folder.rglob("*") if p.is_file() and not p.name.startswith((".", "_"))
    )
    if not found:
        raise NoSuchFile(path=f"{folder}/*", folder=str(Path.cwd()))
    return found


def are_parquet(paths: Sequence[Path]) -> bool:
    """Whether all of them are Parquet; UnreadableFile where some are, or where one is of a kind
    that is not read."""
    kinds = {path: _start(path)[:4] == b"PAR1" for path in paths}
    if len(set(kinds.values())) > 1:
        odd = next(p for p, is_parquet in kinds.items() if is_parquet != kinds[paths[0]])
        raise UnreadableFile(
            path=str(odd),
            where="",
            reason=f"it is of another kind than {paths[0].name}: name files of one kind",
        )
    return all(kinds.values())


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            start = f.read(64)
    except OSError as e:
        raise UnreadableFile(path=str(path), where="", reason=e.strerror or str(e)) from None
    other = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), "")
    if start[8:12] == b"DUCK":
        other = "a DuckDB database (give it as the database, and a query as the data)"
    if other:
        raise UnreadableFile(
            path=str(path), where="", reason=f"it is {other}; Parquet, CSV, TSV and JSON are read"
        )
    return start


def records(path: Path, encoding: str = "") -> Iterator[Record]:
    """The rows of a text file. UnreadableFile names the line."""
    try:
        with _opened(path, encoding) as text:
            start = _first(text)
            if start == "":
                raise UnreadableFile(path=str(path), where="", reason="it is empty")
            if _is_json(path, start):
                yield from _json_rows(path, text)
            else:
                yield from _csv_rows(path, text)
    except UnicodeDecodeError as e:
        raise _undecodable(path, encoding, e) from None
    except UnicodeError as e:  # a UTF-16 without the mark that the codec asks for
        raise UnreadableFile(
            path=str(path), where="", reason=f"it cannot be decoded ({e})"
        ) from None
    except (EOFError, OSError, lzma.LZMAError) as e:
        raise UnreadableFile(path=str(path), where="", reason=str(e)) from None
    except Exception as e:
        if type(e).__module__.startswith("zlib"):
            raise UnreadableFile(path=str(path), where="", reason=str(e)) from None
        raise


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    with _unpacked(path) as binary:
        start = binary.peek(4)[:4]
        inner = (
            "Parquet"
            if start == b"PAR1"
            else next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), "")
        )
        if inner:
            raise UnreadableFile(
                path=str(path), where="", reason=f"it is {inner} packed once more: unpack it first"
            )
        codec = next(
            (codec for mark, codec in _MARKS if start.startswith(mark)), ""
        ) or checked_encoding(encoding)
        with io.TextIOWrapper(cast("IO[bytes]", binary), encoding=codec, newline="") as text:
            yield text


@contextmanager
def _unpacked(path: Path) -> Iterator[Any]:
    start = _start(path)
    kind = next((name for magic, name in _PACKED.items() if start.startswith(magic)), "")
    if kind == "zstd":
        import pyarrow

        with (
            pyarrow.input_stream(str(path), compression="zstd") as stream,
            tempfile.TemporaryFile() as unpacked,
        ):
            shutil.copyfileobj(stream, unpacked)  # it can be read forwards alone
            unpacked.seek(0)
            yield unpacked
        return
    opener: Any = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}.get(kind, open)
    with opener(path, "rb") as f:
        yield f if kind in ("", "gzip") else io.BufferedReader(f)


def decoded(data: bytes, encoding: str = "") -> str:
    """What stood in standard input; UnreadableInput names the first byte that cannot be decoded,
    and its line."""
    codec = next(
        (codec for mark, codec in _MARKS if data.startswith(mark)), ""
    ) or checked_encoding(encoding)
    try:
        return data.decode(codec)
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        reason = (
            f"the byte 0x{data[e.start]:02X} is not {codecs.lookup(e.encoding).name}; say "
            f"its encoding, for example --encoding latin-1"
        )
        raise UnreadableInput(where=f"line {line}: ", reason=reason) from None


def checked_encoding(encoding: str) -> str:
    """The name of a text codec of Python, UTF-8 for none; InvalidOptionValue otherwise."""
    name = encoding or "utf-8"
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        allowed = "a text codec of Python, such as utf-8, latin-1, cp1252 or utf-16-le"
        raise InvalidOptionValue(name="encoding", value=encoding, allowed=allowed) from None


def _first(text: io.TextIOWrapper) -> str:
    """The first character that is no space; the file is put back to its start."""
    try:
        found = ""
        while not found:
            piece = text.read(4096)
            if not piece:
                break
            found = piece.lstrip()[:1]
        return found
    finally:
        text.seek(0)


def _undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> UnreadableFile:
    """Names the first byte that cannot be decoded, and its line."""
    way_out = (
        "say in which encoding it is with the option encoding, for example latin-1, cp1252 "
        "or utf-16-le"
    )
    if encoding:
        way_out = "it is in another encoding than the option says"
    codec = codecs.lookup(error.encoding).name
    reason, where = f"it is not {codec}; {way_out}", ""
    if not codec.startswith(("utf-16", "utf-32")):
        offset = 0
        with _unpacked(path) as binary:
            for number, line in enumerate(binary, 1):
                try:
                    line.decode(codec)
                except UnicodeDecodeError as e:
                    where = f"line {number}: "
                    reason = (
                        f"the byte 0x{line[e.start]:02X} (byte {offset + e.start} of the "
                        f"file) is not {codec}; {way_out}"
                    )
                    break
                offset += len(line)
    return UnreadableFile(path=str(path), where=where, reason=reason)


# ---------------------------------------------------------------- CSV


def _csv_rows(path: Path, text: io.TextIOWrapper) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    delimiter = _delimiter(text)
    text.seek(0)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    ragged: list[int] = []
    try:
        header = next(row for row in reader if row)
        for wanted in _WANTED:
            if header.count(wanted) > 1:
                raise TwoColumns(
                    part=path.name,
                    name=wanted,
                    columns=[name for name in header if name.lower() == wanted],
                )
        names = distinct(header)
        for row in reader:
            if len(row) == len(names):
                if not ragged:
                    yield dict(zip(names, [field or None for field in row], strict=True))
            elif row:
                ragged.append(reader.line_num)
                if len(ragged) == _MOST_NUMBERS:
                    break
    except csv.Error as e:
        raise UnreadableFile(
            path=str(path), where=f"line {reader.line_num}: ", reason=f"{e}"
        ) from None
    if ragged:
        where = (
            f"line {ragged[0]}: " if len(ragged) == 1 else f"lines {', '.join(map(str, ragged))}: "
        )
        raise UnreadableFile(
            path=str(path), where=where, reason=f"other fields than the {len(names)} of the header"
        )


def _delimiter(text: io.TextIOWrapper) -> str:
    """The one that parts the header into the names that are wanted, else into most."""
    sample = text.read(1 << 16)
    text.seek(0)

    def score(delimiter: str) -> tuple[int, int]:
        try:
            header = next(
                (
                    row
                    for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
                    if row
                ),
                [],
            )
        except csv.Error:
            return 0, 0
        return len({name.strip().lower() for name in header} & _WANTED), len(header)

    return max(",\t;|", key=score)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, the second of two equal ones with _2 behind it: context keeps both."""
    found: list[str] = []
    for name in names:
        taken, n, free = {f.lower() for f in found}, 2, name
        while name.lower() not in _WANTED and free.lower() in taken:
            free, n = f"{name}_{n}", n + 1
        found.append(free)
    return found


# ---------------------------------------------------------------- JSON


def _json_rows(path: Path, text: io.TextIOWrapper) -> Iterator[Record]:
    """One object a line; or, where the first line is not one, objects in a list or one after the
    other."""
    first = _object_of(next(line for line in text if line.strip()))
    text.seek(0)
    if first is None:
        yield from _json_whole(path, text.read())
        return
    for number, line in enumerate(_lines(text), 1):
        if line and not line.isspace():
            try:
                yield _flat(line) or _whole_line(line)
            except (ValueError, RecursionError) as e:
                raise UnreadableFile(
                    path=str(path), where=f"line {number}: ", reason=f"no JSON object: {_why(e)}"
                ) from None


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Lines as JSON has them: a carriage return alone ends none."""
    held = ""
    for line in text:
        held += line
        if line.endswith("\n"):
            yield held
            held = ""
    yield held


_pairs: Any = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=Raw, parse_float=Raw, parse_constant=Raw
)
_FLAT = {str, Raw, bool, type(None)}
_BOOL = {True: Raw("true"), False: Raw("false")}


def _flat(line: str) -> Record | None:
    """The object of a line at the library's own speed, where it has neither lists nor objects in
    it, nor anything odd; else None."""
    try:
        pairs = _pairs.decode(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple) or not {type(v) for _, v in pairs} <= _FLAT:
        return None
    found: Record = {k: v if isinstance(v, str) or v is None else _BOOL[v] for k, v in pairs}
    return found if len(found) == len(pairs) and is_unicode(line) and "\\u" not in line else None


def _whole_line(line: str) -> Record:
    record, end = _object(line, _after_space(line, 0))
    if _after_space(line, end) != len(line):
        raise ValueError("something stands behind the object")
    return record


def _json_whole(path: Path, text: str) -> Iterator[Record]:
    at = _after_space(text, 0)
    in_list = text[at : at + 1] == "["
    try:
        at = _after_space(text, at + in_list)
        while at < len(text) and text[at] != "]":
            record, at = _object(text, at)
            yield record
            at = _after_space(text, at)
            if in_list and text[at : at + 1] == ",":
                at = _after_space(text, at + 1)
            elif in_list and text[at : at + 1] != "]":
                raise json.JSONDecodeError("a comma or ] is expected", text, at)
        if in_list and (text[at : at + 1] != "]" or _after_space(text, at + 1) != len(text)):
            raise json.JSONDecodeError("the list does not end with ]", text, at)
    except (ValueError, RecursionError) as e:
        line = text.count("\n", 0, e.pos if isinstance(e, json.JSONDecodeError) else at) + 1
        raise UnreadableFile(
            path=str(path), where=f"line {line}: ", reason=f"no JSON object: {_why(e)}"
        ) from None


def _object_of(line: str) -> Record | None:
    try:
        found, end = _object(line, _after_space(line, 0))
    except (ValueError, RecursionError):
        return None
    return found if _after_space(line, end) == len(line) else None


def _object(s: str, at: int) -> tuple[Record, int]:
    """The object at this place and where it ends: strings as decoded, every other value as its
    slice. ValueError where there is none."""
    if s[at : at + 1] != "{":
        raise json.JSONDecodeError("an object is expected", s, at)
    found: Record = {}
    at = _after_space(s, at + 1)
    while s[at : at + 1] != "}":
        if s[at : at + 1] != '"':
            raise json.JSONDecodeError("a key is expected", s, at)
        key, at = _string(s, at + 1)
        at = _after_space(s, at)
        if s[at : at + 1] != ":":
            raise json.JSONDecodeError("a colon is expected", s, at)
        if key in found:
            raise json.JSONDecodeError(f"the key {key!r} stands there twice", s, at)
        at = _after_space(s, at + 1)
        found[key], at = _value(s, at)
        at = _after_space(s, at)
        if s[at : at + 1] == ",":
            at = _after_space(s, at + 1)
            if s[at : at + 1] == "}":
                raise json.JSONDecodeError("a key is expected", s, at)
        elif s[at : at + 1] != "}":
            raise json.JSONDecodeError("a comma or } is expected", s, at)
    return found, at + 1


def _value(s: str, at: int) -> tuple[Value, int]:
    if s[at : at + 1] == '"':
        text, end = _string(s, at + 1)
        return (text if is_unicode(text) else Broken()), end
    try:
        value, end = _scan(s, at)
    except StopIteration:
        raise json.JSONDecodeError("a value is expected", s, at) from None
    return (None if value is None else Raw(s[at:end])), end


def as_sql(paths: Sequence[Path], encoding: str, keys: Sequence[str]) -> str:
    """A query with which DuckDB reads text files, every column as text. It is not always what
    `records` gives: look before using it."""
    listed = ", ".join("'" + str(p).replace("'", "''") + "'" for p in paths)
    with _opened(paths[0], encoding) as text:
        is_json = _is_json(paths[0], _first(text))
        delimiter = "" if is_json else _delimiter(text)
    if is_json:
        names = ", ".join(
            f"'{k.replace(chr(39), chr(39) * 2)}': "
            f"'{'JSON' if k.lower() == 'messages' else 'VARCHAR'}'"
            for k in keys
        )
        return f"SELECT * FROM read_json([{listed}], columns = {{{names}}})"
    delim = {"\t": "'\\t'"}.get(delimiter, f"'{delimiter}'")
    return (
        f"SELECT * FROM read_csv([{listed}], all_varchar = true, header = true, delim = "
        f"{delim}, quote = '\"', escape = '\"')"
    )


def _is_json(path: Path, start: str) -> bool:
    return start in ("{", "[") and path.suffix.lower() not in (".csv", ".tsv")


def _after_space(s: str, at: int) -> int:
    return _SPACE.match(s, at).end()  # type: ignore[union-attr]


def _why(e: Exception) -> str:
    return (
        f"{e.msg} at character {e.colno}"
        if isinstance(e, json.JSONDecodeError)
        else str(e) or type(e).__name__
    )
