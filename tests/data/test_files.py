"""What is written is what is frozen, whatever the file: texts are drawn, written by other
libraries, frozen and compared."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tunesmith.data import files
from tunesmith.data.dataset import Dataset, Row, snapshot
from tunesmith.data.given import sources_of
from tunesmith.errors import (
    InvalidOptionValue,
    MissingColumns,
    NoSuchFile,
    NoUsableRows,
    OptionNotRead,
    QueryRefused,
    TwoColumns,
    UnreadableFile,
)

ROWS = [(f"question {i}", f"answer {i % 3}") for i in range(12)]
# what readers guess types from, what they hold for nothing, and what they might not give back
ODD = (
    "2024-03-01T09:30:00Z",
    "550E8400-E29B-41D4-A716-446655440000",
    "01/04/2024",
    "1.50",
    "09:01",
    "True",
    "NULL",
    "nan",
    "None",
    "NA",
    "1e5",
    "0x10",
    "007",
    "-0",
    "+1",
    "1,5",
    "a\tb",
    'say "hi"',
    "'",
    "a\\nb",
    "a\nb",
    "a\r\nb",
    " padded ",
    "{}",
    "[1, 2]",
    "null",
    "é\u2028",
    "\ufeff",
    "😀",
    "#x",
    "a;b|c",
    "\x00",
    "\x1a",
    "\\",
    "''",
    '""',
)
TEXT = st.one_of(
    st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
).filter(lambda t: t.strip())
TABLES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=24)
PROPERTY = settings(
    max_examples=20,  # of up to 24 rows: what is frozen takes as long for one
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def frozen(data: Any, home: Path, **options: Any) -> list[Row]:
    """The usable rows of some data, in their order."""
    with duckdb.connect() as connection:
        final = home / f"frozen-{len(list(home.glob('frozen-*')))}"
        found = snapshot(
            connection, sources_of({"training": data}, **options), final, home=home, seed=0
        )
    dataset = Dataset.open(final, found.digest)
    return sorted(
        (row for part in ("train", "validation", "verdict") for row in dataset.rows(part)),
        key=lambda r: r.row,
    )


def texts(data: Any, home: Path, **options: Any) -> list[tuple[str, str]]:
    return [(r.prompt, r.completion) for r in frozen(data, home, **options)]


def as_csv(
    rows: Sequence[tuple[str, str]],
    delimiter: str = ",",
    quoting: Any = csv.QUOTE_MINIMAL,
    end: str = "\r\n",
) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(["prompt", "completion"])
    writer.writerows(rows)
    return out.getvalue()


def as_jsonl(rows: Sequence[tuple[str, str]], ascii: bool = False) -> str:
    return "".join(
        json.dumps({"prompt": p, "completion": c}, ensure_ascii=ascii) + "\n" for p, c in rows
    )


def arrow_table(rows: Sequence[tuple[str, str]]) -> Any:
    import pyarrow

    return pyarrow.table({"prompt": [p for p, _ in rows], "completion": [c for _, c in rows]})


def write_parquet(rows: Sequence[tuple[str, str]], path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(arrow_table(rows), path)


WRITERS: dict[str, Callable[[Sequence[tuple[str, str]], Path], Any]] = {
    "csv": lambda rows, path: path.write_text(as_csv(rows), "utf-8", newline=""),
    "csv, all quoted, LF": lambda rows, path: path.write_text(
        as_csv(rows, quoting=csv.QUOTE_ALL, end="\n"), "utf-8", newline=""
    ),
    "semicolons": lambda rows, path: path.write_text(as_csv(rows, ";"), "utf-8", newline=""),
    "tsv": lambda rows, path: path.write_text(as_csv(rows, "\t"), "utf-8", newline=""),
    "jsonl": lambda rows, path: path.write_text(as_jsonl(rows), "utf-8", newline=""),
    "jsonl, escaped": lambda rows, path: path.write_text(as_jsonl(rows, True), "utf-8", newline=""),
    "a JSON list": lambda rows, path: path.write_text(
        json.dumps([{"prompt": p, "completion": c} for p, c in rows], indent=2), "utf-8"
    ),
    "utf-8 with a mark": lambda rows, path: path.write_text(
        as_jsonl(rows), "utf-8-sig", newline=""
    ),
    "utf-16": lambda rows, path: path.write_text(as_csv(rows), "utf-16", newline=""),
    "utf-32": lambda rows, path: path.write_text(as_jsonl(rows), "utf-32", newline=""),
    "gzip": lambda rows, path: path.write_bytes(gzip.compress(as_jsonl(rows).encode())),
    "bz2": lambda rows, path: path.write_bytes(bz2.compress(as_csv(rows).encode())),
    "xz": lambda rows, path: path.write_bytes(lzma.compress(as_csv(rows, "\t").encode())),
    "parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
@PROPERTY
@example(rows=[(t, t) for t in ODD if t.strip()])
@given(rows=TABLES)
def test_the_text_of_the_file_is_the_text_that_is_frozen(
    tmp_path_factory: Any, kind: str, rows: list[tuple[str, str]]
) -> None:
    home = tmp_path_factory.mktemp("files")
    file = home / "rows"  # no suffix: the kind is told by the content
    WRITERS[kind](rows, file)
    assert texts(str(file), home) == rows


@PROPERTY
@given(rows=TABLES)
def test_dictionaries_frames_arrow_and_sql_give_the_same_text(
    tmp_path_factory: Any, rows: list[tuple[str, str]]
) -> None:
    import pandas

    home = tmp_path_factory.mktemp("memory")
    named = [{"prompt": p, "completion": c} for p, c in rows]
    assert (
        texts(named, home)
        == texts(pandas.DataFrame(named), home)
        == texts(arrow_table(rows), home)
        == rows
    )
    assert texts(pandas.DataFrame(named, dtype=object), home) == rows
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (prompt VARCHAR, completion VARCHAR)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
        found = snapshot(
            connection, sources_of({"training": "SELECT * FROM t"}), home / "sql", home=home, seed=0
        )
    kept = [
        r
        for part in ("train", "validation", "verdict")
        for r in Dataset.open(home / "sql", found.digest).rows(part)
    ]
    assert sorted((r.row, r.prompt, r.completion) for r in kept) == [
        (n, p, c) for n, (p, c) in enumerate(rows, 1)
    ]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@PROPERTY
@given(
    values=st.lists(JSON, min_size=1, max_size=6),
    spaces=st.sampled_from([(",", ":"), (", ", ": "), (" , ", "  :  ")]),
)
def test_a_json_value_that_is_no_text_is_frozen_as_its_slice_of_the_file(
    tmp_path_factory: Any, values: list[Any], spaces: Any
) -> None:
    home = tmp_path_factory.mktemp("slices")
    written = [json.dumps(v, separators=spaces) for v in values]
    (home / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "p{i}", "completion": {w}}}\n' for i, w in enumerate(written))
    )
    wanted = [
        (f"p{i}", v if isinstance(v, str) else w)
        for i, (v, w) in enumerate(zip(values, written, strict=True))
        if v is not None
    ]
    wanted = [(p, c) for p, c in wanted if c.strip()]
    if not wanted:
        with pytest.raises(NoUsableRows):
            texts(str(home / "rows.jsonl"), home)
    else:
        assert texts(str(home / "rows.jsonl"), home) == wanted


@pytest.mark.parametrize(
    "number", ["1.50", "1e5", "-0.0", "1E+2", "123456789012345678901234567890", "true", "NaN"]
)
def test_numbers_stay_as_they_are_written(tmp_path: Path, number: str) -> None:
    (tmp_path / "n.jsonl").write_text(
        f'{{"prompt": "a", "completion": {number}, "price": {number}}}\n'
    )
    [row] = frozen(str(tmp_path / "n.jsonl"), tmp_path)
    assert row.completion == number and json.loads(row.context)["price"] is not None


def test_an_empty_field_is_missing_and_words_for_nothing_are_words(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text('prompt,completion,note\na,NULL,\nb,,x\nc,"",y\nd,None,z\n')
    rows = frozen(str(tmp_path / "e.csv"), tmp_path)
    assert [(r.prompt, r.completion) for r in rows] == [("a", "NULL"), ("d", "None")]
    assert [json.loads(r.context)["note"] for r in rows] == [None, "z"]


def test_the_keys_of_all_rows_count(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "a"}',
        '{"completion": "x", "prompt": "b", "region": "eu"}',
        "",
        '{"prompt": "c", "completion": "y"}',
    ]
    (tmp_path / "u.jsonl").write_text("\n".join(lines))
    rows = frozen(str(tmp_path / "u.jsonl"), tmp_path)
    assert [(r.row, r.prompt, r.context) for r in rows] == [
        (2, "b", '{"region": "eu"}'),
        (3, "c", "{}"),
    ]


def test_folders_globs_and_marked_paths_are_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "parts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.csv").write_text(as_csv(ROWS[:6]))
    (folder / "deep" / "b.jsonl").write_text(as_jsonl(ROWS[6:]))
    (folder / ".hidden").write_text("nonsense")
    assert texts(str(folder), tmp_path) == texts(folder, tmp_path) == ROWS
    assert texts(f"@{folder}/a.csv", tmp_path) == texts(str(folder / "*.csv"), tmp_path) == ROWS[:6]
    monkeypatch.chdir(folder)
    assert texts("a.csv", tmp_path) == ROWS[:6] and texts("**/*.jsonl", tmp_path) == ROWS[6:]


def test_several_parquet_files_are_one_table_by_their_names(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    write_parquet(ROWS[:6], tmp_path / "a.parquet")
    parquet.write_table(
        pyarrow.table({"completion": [c for _, c in ROWS[6:]], "prompt": [p for p, _ in ROWS[6:]]}),
        tmp_path / "b.parquet",
    )
    assert texts(str(tmp_path / "*.parquet"), tmp_path) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "  with x as (select 1) select * from x",
        "FROM t",
        "(SELECT 1)",
        "SELECT * FROM 'a.csv'",
        "select a/b from t",
    ],
)
def test_a_query_is_no_file(text: str) -> None:
    assert files.named(text) == []


def test_a_file_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "@rows", "nowhere/*.parquet"):
        with pytest.raises(NoSuchFile, match=r"No file, folder or glob"):
            texts(name, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSuchFile):
        texts(str(tmp_path / "empty"), tmp_path)
    with pytest.raises(QueryRefused):
        texts("no_such_thing", tmp_path)


BROKEN = {
    "ragged.csv": (
        b"prompt,completion\na,b\na\nc,d\ne,f,g\n",
        r"lines 3, 5: other fields than the 2",
    ),
    "quote.csv": (b'prompt,completion\na,"b\nc,d\n', r"line 3: unexpected end of data"),
    "behind.csv": (b'prompt,completion\na,"b" c\n', r"line 2: "),
    "cut.jsonl": (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"', r"line 2: no JSON object"),
    "two.jsonl": (b'{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}\n', None),
    "behind.jsonl": (
        b'{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b"} x\n',
        r"line 2: .*behind the object",
    ),
    "twice.jsonl": (
        b'{"prompt": "a", "completion": "b", "prompt": "c"}\n',
        r"line 1: .*'prompt' stands there twice",
    ),
    "list.json": (b'[{"prompt": "a", "completion": "b"}\n {"prompt": "c"}]', r"line 2: .*comma"),
    "scalar.json": (b'[{"prompt": "a", "completion": "b"}, 5]', r"an object is expected"),
    "nothing.csv": (b"", r"it is empty"),
    "deep.jsonl": (
        b'{"prompt": "a", "completion": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        r"line 1",
    ),
    "latin1.csv": (
        "prompt,completion\na,b\ncafé,ü\n".encode("latin-1"),
        r"line 3: the byte 0xE9 \(byte 25 of the file\) is not utf-8.*encoding",
    ),
    "latin1.jsonl": (
        '{"prompt": "a", "completion": "é"}\n'.encode("latin-1"),
        r"line 1: the byte 0xE9",
    ),
    "cut.jsonl.gz": (gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99)[:-9], r"."),
    "book.xlsx": (b"PK\x03\x04rest", r"Excel"),
    "cut.parquet": (b"PAR1 and no more", r"cut\.parquet cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_names_what_is_wrong_and_where(tmp_path: Path, name: str) -> None:
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    if words is None:
        assert texts(str(tmp_path / name), tmp_path) == [("a", "b"), ("c", "d")]
        return
    with pytest.raises(UnreadableFile, match=words):
        texts(str(tmp_path / name), tmp_path)


@PROPERTY
@given(
    content=st.binary(max_size=60),
    name=st.sampled_from(["x.csv", "x.jsonl", "x", "x.parquet", "x.gz"]),
)
@example(content=b"prompt,completion\n\xff\xfe,x\n", name="x.csv")
@example(content=b'{"prompt": "\\ud83d", "completion": "x"}\n', name="x.jsonl")
def test_any_bytes_are_rows_or_an_error_of_ours(
    tmp_path_factory: Any, content: bytes, name: str
) -> None:
    home = tmp_path_factory.mktemp("bytes")
    (home / name).write_bytes(content)
    try:
        texts(str(home / name), home)
    except (UnreadableFile, MissingColumns, NoUsableRows, TwoColumns):
        pass


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("latin-1", "café"), ("cp1252", "€ 5"), ("utf-16-le", "ü"), ("shift_jis", "日本")],
)
def test_the_option_encoding_says_what_no_mark_says(
    tmp_path: Path, encoding: str, text: str
) -> None:
    (tmp_path / "rows.csv").write_bytes(as_csv([(text, "x")]).encode(encoding))
    assert texts(str(tmp_path / "rows.csv"), tmp_path, encoding=encoding) == [(text, "x")]


def test_a_byte_order_mark_is_obeyed_before_the_option(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(as_csv([("ü", "x")]), "utf-16", newline="")
    assert texts(str(tmp_path / "rows.csv"), tmp_path, encoding="latin-1") == [("ü", "x")]


def test_an_encoding_that_is_none_or_that_nothing_reads_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(as_csv(ROWS))
    for name in ("utf-9", "base64", "rot13"):
        with pytest.raises(InvalidOptionValue, match="codec"):
            texts(str(tmp_path / "rows.csv"), tmp_path, encoding=name)
    with pytest.raises(OptionNotRead, match="text files"):
        texts("SELECT 'a' AS prompt, 'b' AS completion", tmp_path, encoding="latin-1")


@pytest.mark.parametrize(
    "header",
    ["prompt,PROMPT,completion", "prompt,completion,completion", "Completion,prompt,completion"],
)
def test_a_wanted_column_that_stands_there_twice_is_an_error_that_names_both(
    tmp_path: Path, header: str
) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\na,b,c\n")
    names = header.split(",")
    with pytest.raises(TwoColumns) as caught:
        texts(str(tmp_path / "rows.csv"), tmp_path)
    assert all(
        n in str(caught.value)
        for n in names
        if names.count(n) > 1 or n.lower() == caught.value.fields["name"]
    )
    with pytest.raises(TwoColumns):
        texts("SELECT 1 AS prompt, 2 AS PROMPT, 3 AS completion", tmp_path)
    with pytest.raises(TwoColumns):
        texts([{"prompt": "a", "completion": "b"}, {"Prompt": "a", "prompt": "c"}], tmp_path)


def test_other_columns_of_one_name_are_kept_both(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion,id,ID\na,b,1,2\n")
    [row] = frozen(str(tmp_path / "rows.csv"), tmp_path)
    assert json.loads(row.context) == {"id": "1", "ID_2": "2"}
    [row] = frozen("SELECT 'a' AS prompt, 'b' AS completion, 1 AS id, 2 AS id", tmp_path)
    assert json.loads(row.context) == {"id": 1, "id_2": 2}


def test_a_file_whose_name_has_quotes_and_wildcards_is_that_file(tmp_path: Path) -> None:
    for name in ("it's.csv", "a[1].csv", "50%.csv", "select.csv", "ü b.csv"):
        (tmp_path / name).write_text(as_csv(ROWS))
        assert texts(str(tmp_path / name), tmp_path) == ROWS
    write_parquet(ROWS, tmp_path / "it's [1].parquet")
    assert texts(str(tmp_path / "it's [1].parquet"), tmp_path) == ROWS
