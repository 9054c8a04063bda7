"""Each check finds what was planted, names its rows, stays silent without it, and its SQL takes it
away."""

import json
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith import catalog, demo
from tunesmith.data.checks import audit
from tunesmith.data.checks.measures import dependence, suspect_labels
from tunesmith.data.given import sources_of
from tunesmith.data.minhash import near_duplicates
from tunesmith.data.personal import DETECTORS, is_card, is_iban
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.documents.audit import AuditReport, Finding
from tunesmith.errors import UnknownGroup

SPEC = catalog.find("tunesmith-tiny", Path("/nowhere"))
ENCODER = Encoder(PromptTemplate.of_base(Path(SPEC.folder)), Path(SPEC.folder))
COLOURS = ["red", "green", "blue"]
NOUNS = [
    "door",
    "lamp",
    "table",
    "window",
    "garden",
    "engine",
    "letter",
    "bottle",
    "picture",
    "ladder",
    "basket",
    "mirror",
]


def plain(n: int = 60) -> list[dict[str, Any]]:
    """Rows with nothing to find."""
    r = random.Random(3)
    return [
        {
            "prompt": f"{i}: what of the {' and the '.join(r.sample(NOUNS, 3))} near number {r.randrange(10**6)}?",
            "completion": COLOURS[i % 3],
            "place": "north" if i % 2 else "south",
        }
        for i in range(n)
    ]


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def load(connection: duckdb.DuckDBPyConnection, name: str, rows: list[dict[str, Any]]) -> str:
    columns = list(rows[0])
    connection.execute(f"CREATE TABLE {name} ({', '.join(f'{c} VARCHAR' for c in columns)})")
    connection.executemany(
        f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})",
        [[r[c] for c in columns] for r in rows],
    )
    return f"SELECT * FROM {name}"


def report(
    connection: duckdb.DuckDBPyConnection, queries: Mapping[str, str], **more: Any
) -> AuditReport:
    return audit(connection, sources_of(queries), ENCODER, SPEC, **more)


def named(found: AuditReport, name: str) -> Finding | None:
    return next((f for f in found.findings if f.name == name), None)


def test_rows_with_nothing_to_find_give_no_finding(connection: duckdb.DuckDBPyConnection) -> None:
    found = report(connection, {"training": load(connection, "t", plain())})
    assert found.findings == () and found.rows == {"training": 60}
    assert (
        found.classes == {"blue": 20, "green": 20, "red": 20}
        and found.entropy == pytest.approx(1)
        and found.imbalance == 1
    )
    assert found.clean_sql == "SELECT * FROM t"


def planted(name: str) -> list[dict[str, Any]]:
    rows = plain()
    a, b = rows[4], rows[9]
    changes: dict[str, list[dict[str, Any]]] = {
        "unusable": [{**a, "prompt": None}, {**b, "completion": "  "}],
        "duplicates": [{**a, "prompt": a["prompt"].upper().replace(" ", "  ")}, dict(b)],
        "near_duplicates": [
            {**a, "prompt": a["prompt"].replace("?", " !!")},
            {**b, "prompt": b["prompt"].replace(":", " -")},
        ],
        "conflicts": [{**a, "completion": "green" if a["completion"] != "green" else "red"}],
        "outer_spaces": [{**a, "prompt": "entirely new words stand here\n"}],
        "control_characters": [
            {**a, "prompt": "a bell rings \x07 in this one"},
            {**a, "prompt": "the lost letter \ufffd in that"},
        ],
        "mojibake": [{**a, "prompt": "the cafÃ© isnâ€™t open"}],
        "echoes": [
            {
                **a,
                "prompt": "say something nice to me",
                "completion": "Say something nice to me please",
            }
        ],
        "too_long": [{**a, "prompt": " ".join(["word salad with ever more words"] * 400)}],
        "personal_data": [{**a, "prompt": "my mail is ana.li+x@example.org now"}],
    }
    return rows + changes[name]


@pytest.mark.parametrize(
    "name",
    [
        "unusable",
        "duplicates",
        "near_duplicates",
        "conflicts",
        "outer_spaces",
        "control_characters",
        "mojibake",
        "echoes",
        "too_long",
        "personal_data",
    ],
)
def test_a_planted_defect_is_found_by_its_rows_and_its_sql_takes_it_away(
    connection: duckdb.DuckDBPyConnection, name: str
) -> None:
    rows = planted(name)
    query = load(connection, "t", rows)
    found = report(connection, {"training": query})
    finding = named(found, name)
    assert finding is not None and {f.name for f in found.findings} - {"few_rows_per_class"} == {
        name
    }
    expected = set(range(61, len(rows) + 1)) | ({5} if name == "conflicts" else set())
    assert set(finding.rows) == expected and finding.count == len(expected)
    for sql in (finding.fix, found.clean_sql):
        mended = report(connection, {"training": sql})
        assert named(mended, name) is None, sql
        lost = 0 if finding.replace else len(expected)
        assert mended.rows["training"] == len(rows) - lost, "and no other row goes"
    assert "place" in connection.sql(finding.fix).columns, "the other columns stay"


def test_mojibake_is_mended_to_the_letter(connection: duckdb.DuckDBPyConnection) -> None:
    found = named(
        report(connection, {"training": load(connection, "t", planted("mojibake"))}), "mojibake"
    )
    assert found is not None
    assert ("the café isn’t open",) in connection.sql(
        f"SELECT prompt FROM ({found.fix})"
    ).fetchall()


def test_leaks_equal_and_near_are_told_apart_and_taken_out_of_training(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = plain()
    others = [
        {"prompt": "nothing like the rest, truly", "completion": "red"},
        {"prompt": rows[7]["prompt"].upper(), "completion": "red"},
        {"prompt": rows[20]["prompt"].replace("?", "..."), "completion": "red"},
    ]
    queries = {"training": load(connection, "t", rows), "test": load(connection, "x", others)}
    found = report(connection, queries)
    equal, near = named(found, "leakage"), named(found, "near_leakage")
    assert equal is not None and near is not None
    assert (equal.rows, near.rows, equal.severity) == ((8,), (21,), "error")
    clean = report(connection, {**queries, "training": found.clean_sql})
    assert (
        named(clean, "leakage") is None
        and named(clean, "near_leakage") is None
        and clean.rows["training"] == 58
    )


def test_several_good_answers_to_one_prompt_are_only_a_note(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [
        {"prompt": f"tell me about {n}", "completion": f"{n} is {w}, and that in many ways, {i}"}
        for n in NOUNS
        for i, w in enumerate(["good", "old"])
    ]
    found = named(report(connection, {"training": load(connection, "t", rows)}), "conflicts")
    assert found is not None and found.severity == "note" and found.count == 24


def test_a_dominant_answer_and_rare_ones_are_told_with_figures(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [
        {**r, "completion": "red" if i < 50 else "green" if i < 57 else "blue"}
        for i, r in enumerate(plain())
    ]
    found = report(connection, {"training": load(connection, "t", rows)})
    imbalance, few = named(found, "imbalance"), named(found, "few_rows_per_class")
    assert imbalance is not None and few is not None
    assert "50 of 60" in imbalance.message and "ratio 16.7" in imbalance.message and few.count == 2
    assert found.imbalance == pytest.approx(50 / 3)
    mended = report(connection, {"training": imbalance.fix})
    assert mended.imbalance is not None and mended.imbalance < found.imbalance
    assert imbalance.fix not in found.clean_sql, "what needs a person's eye is never done by itself"


def test_prompts_of_two_forms_are_told(connection: duckdb.DuckDBPyConnection) -> None:
    rows = [{**r, "prompt": f"Which colour fits this text? {r['prompt']}"} for r in plain()]
    rows[10]["prompt"], rows[11]["prompt"] = (
        "[INST] " + plain()[10]["prompt"],
        plain()[11]["prompt"],
    )
    found = report(connection, {"training": load(connection, "t", rows)})
    prefix, templates = named(found, "prompt_prefix"), named(found, "prompt_templates")
    assert prefix is not None and prefix.rows == (11, 12) and "Which colour fits" in prefix.message
    assert templates is not None and templates.rows == (11,)


def test_columns_with_one_value_are_told(connection: duckdb.DuckDBPyConnection) -> None:
    rows = [{**r, "completion": "red", "place": "north"} for r in plain()]
    names = {f.name for f in report(connection, {"training": load(connection, "t", rows)}).findings}
    assert {"constant_completion", "constant_column"} <= names


def test_a_column_that_tells_the_answer_is_told_and_an_independent_one_is_not(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [
        {**r, "person": "a" if (r["completion"] == "red") == (i % 10 > 0) else "b"}
        for i, r in enumerate(plain(300))
    ]
    found = report(connection, {"training": load(connection, "t", rows)})
    groups = {g.column: g for g in found.groups}
    assert [
        f.message.split(" tells")[0] for f in found.findings if f.name == "group_tells_answer"
    ] == ["the column person"]
    assert groups["place"].p_value is not None and groups["place"].p_value > 0.05
    assert sum(groups["person"].by_answer["red"].values()) == 100 and groups[
        "person"
    ].counts.keys() == {"a", "b"}


def test_a_group_can_be_named_and_must_be_there(connection: duckdb.DuckDBPyConnection) -> None:
    query = load(connection, "t", plain())
    assert [g.column for g in report(connection, {"training": query}, groups=["place"]).groups] == [
        "place"
    ]
    with pytest.raises(UnknownGroup, match="place"):
        report(connection, {"training": query}, groups=["plaec"])


def test_dependence_agrees_with_scipy() -> None:
    from scipy.stats import chi2_contingency

    r = random.Random(0)
    for _ in range(30):
        table = [[r.randrange(5, 60) for _ in range(r.randrange(2, 6))]]
        table += [[r.randrange(5, 60) for _ in table[0]] for _ in range(r.randrange(1, 5))]
        found = chi2_contingency(table, correction=False)
        assert dependence(table)[1] == pytest.approx(found.pvalue, abs=0.01)
    assert dependence([[50, 0], [0, 50]])[0] == pytest.approx(1)
    assert dependence([[25, 25], [25, 25]])[0] == pytest.approx(0)


def test_planted_wrong_labels_are_where_the_linear_model_looks() -> None:
    r = random.Random(1)
    texts = [
        f"{r.choice(NOUNS)} {c} {r.choice(NOUNS)} {c}ish {r.randrange(50)}"
        for c in COLOURS
        for _ in range(100)
    ]
    labels = [c for c in COLOURS for _ in range(100)]
    wrong = set(r.sample(range(300), 12))
    labels = [next(c for c in COLOURS if c != v) if i in wrong else v for i, v in enumerate(labels)]
    found = set(suspect_labels(texts, labels))
    assert len(found & wrong) >= 10 and len(found - wrong) <= 3


def test_near_duplicates_of_any_distance_are_judged_by_their_similarity() -> None:
    r = random.Random(5)
    words = [f"w{i}" for i in range(5000)]
    texts = [" ".join(r.sample(words, 40)) for _ in range(300)]
    close = texts[7].split()
    close[20] = "other"  # 37 of 41 pairs in common: 0.88
    far = texts[9].split()
    far[5::6] = ["other"] * len(far[5::6])
    assert near_duplicates([*texts, " ".join(close), " ".join(far)]) == [[7, 300]]


@given(
    st.lists(st.sampled_from(["", "a", "b c", "B, c!", "d e f g", "x y"]), min_size=1, max_size=20)
)
@settings(max_examples=50, deadline=None)
def test_texts_of_the_same_words_always_stand_in_one_group(texts: list[str]) -> None:
    words = [tuple(t.lower().replace(",", "").replace("!", "").split()) for t in texts]
    groups = {i: g for g in near_duplicates(texts) for i in g}
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            assert (a == b) == (i == j or j in groups.get(i, [])), (texts[i], texts[j])


@pytest.mark.parametrize(
    ("kind", "text", "is_there"),
    [
        ("e-mail address", "write to ana.li@example.co.uk today", True),
        ("e-mail address", "meet @ noon, 3@home", False),
        ("IBAN", "pay to DE89 3704 0044 0532 0130 00 please", True),
        ("IBAN", "pay to DE89 3704 0044 0532 0130 01 please", False),
        ("IBAN", "GB82WEST12345698765432", True),
        ("card number", "card 4111 1111 1111 1111 exp", True),
        ("card number", "order 4111 1111 1111 1112 exp", False),
        ("card number", "0000 0000 0000 0000", False),
        ("phone number", "call +49 30 901820 or", True),
        ("phone number", "call 030 / 901 820 44", True),
        ("phone number", "in 2024, 17 of 100 rows", False),
        ("phone number", "it cost 1 000 000 in 2021", False),
        ("key", "use sk-abcdefghijklmnopqrstuvwx now", True),
        ("key", "-----BEGIN RSA PRIVATE KEY-----", True),
        ("key", "ask-me-anything-about-it", False),
    ],
)
def test_personal_data_is_told_by_its_form_and_its_checksum(
    connection: duckdb.DuckDBPyConnection, kind: str, text: str, is_there: bool
) -> None:
    detector = next(d for d in DETECTORS if d.kind == kind)
    assert bool(detector.find(text)) is is_there
    found = named(
        report(
            connection,
            {"training": load(connection, "t", [*plain(), {**plain()[0], "prompt": text}])},
        ),
        "personal_data",
    )
    assert (found is not None and kind in found.message) is is_there, (
        "DuckDB's engine reads the pattern alike"
    )


def test_checksums() -> None:
    assert is_card("5500-0000-0000-0004") and not is_card("5500-0000-0000-0005")
    assert is_iban("FR14 2004 1010 0505 0001 3M02 606") and not is_iban(
        "FR14 2004 1010 0505 0001 3M02 607"
    )


def test_rows_of_messages_are_audited_and_mended_by_position(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [
        {
            "messages": json.dumps(
                [
                    {"role": "user", "content": r["prompt"]},
                    {"role": "assistant", "content": r["completion"]},
                ]
            )
        }
        for r in plain()
    ]
    query = load(connection, "t", [*rows, rows[3], {"messages": "[]"}])
    found = report(connection, {"training": query})
    duplicates, unusable = named(found, "duplicates"), named(found, "unusable")
    assert (
        duplicates is not None
        and duplicates.rows == (61,)
        and unusable is not None
        and unusable.rows == (62,)
    )
    assert report(connection, {"training": found.clean_sql}).rows == {"training": 60}


def test_a_report_crosses_as_json(connection: duckdb.DuckDBPyConnection) -> None:
    found = report(connection, {"training": load(connection, "t", planted("duplicates"))})
    assert AuditReport.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_every_defect_of_the_demos_table_is_found(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    demo.write(str(tmp_path / "demo.duckdb"))
    connection.execute(f"ATTACH '{tmp_path / 'demo.duckdb'}' AS d (READ_ONLY)")
    queries = {
        part: f"SELECT id, message AS prompt, team AS completion, region FROM d.tickets WHERE split = '{split}'"
        for part, split in (("training", "train"), ("validation", "valid"), ("test", "test"))
    }
    found = {(f.name, f.source): f for f in report(connection, queries).findings}
    least = {
        "duplicates": 12,
        "near_duplicates": 12,
        "conflicts": 12,
        "personal_data": 10,
        "too_long": 1,
        "unusable": 4,
        "imbalance": 1,
        "leakage": 3,
    }
    assert {name: n for name, n in least.items() if found[name, "training"].count < n} == {}
    leaks = [
        f
        for f in report(connection, queries).findings
        if f.name == "leakage" and "test query" in f.message
    ]
    assert leaks[0].count >= 8


def test_500_rows_take_under_3_seconds(connection: duckdb.DuckDBPyConnection) -> None:
    query = load(connection, "t", plain(500))
    report(connection, {"training": query})  # imports once
    began = time.process_time()
    report(connection, {"training": query})
    assert time.process_time() - began < 3


def test_columns_that_are_no_text_are_named_with_a_value_before_and_after(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute(
        "CREATE TABLE t AS SELECT '\"q ' || i || '\"' AS prompt, DATE '2024-04-01' + i::INT AS completion FROM range(20) r(i)"
    )
    found = named(
        report(connection, {"training": "SELECT prompt::JSON AS prompt, completion FROM t"}),
        "not_text",
    )
    assert found is not None and found.severity == "note"
    told = [
        f.message
        for f in report(
            connection, {"training": "SELECT prompt::JSON AS Prompt, completion FROM t"}
        ).findings
        if f.name == "not_text"
    ]
    assert any(
        "column Prompt is JSON" in m and "'\"q 0\"' is trained on as 'q 0'" in m for m in told
    )
    assert any(
        "column completion is DATE" in m and "'2024-04-01' is trained on as '2024-04-01'" in m
        for m in told
    )
    assert (
        named(
            report(
                connection, {"training": "SELECT prompt, completion::VARCHAR AS completion FROM t"}
            ),
            "not_text",
        )
        is None
    )
    mended = report(
        connection, {"training": "SELECT ' ' || i AS prompt, i AS completion FROM range(30) r(i)"}
    ).clean_sql
    assert connection.execute(
        f"SELECT typeof(completion), prompt FROM ({mended}) LIMIT 1"
    ).fetchall() == [("VARCHAR", "0")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_the_sql_for_a_file_reads_its_text_or_there_is_none(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, kind: str
) -> None:
    rows = [(f"  question {i}", f"0{i % 3}.50") for i in range(30)]
    file = tmp_path / f"rows.{kind}"
    separator = "," if kind == "csv" else "\t"
    text = (
        "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows)
        if kind == "jsonl"
        else (f"prompt{separator}completion\n" + "".join(f"{p}{separator}{c}\n" for p, c in rows))
    )
    file.write_text(text)
    found = report(connection, {"training": str(file)})
    assert named(found, "outer_spaces") is not None
    assert connection.execute(
        f"SELECT prompt, completion FROM ({found.clean_sql}) LIMIT 1"
    ).fetchall() == [("question 0", "00.50")]
    if kind == "jsonl":
        file.write_text(
            "".join(f'{{"prompt": " q {i}", "completion": {i}.50}}\n' for i in range(30))
        )
        found = report(connection, {"training": str(file)})
        assert found.clean_sql == "" and any(
            "other texts than the file has" in n for n in found.not_measured
        )
        assert all(f.fix == "" for f in found.findings)


def test_conversations_are_audited_and_rows_that_the_template_refuses_are_named(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    talk = [
        {
            "messages": [
                {"role": "user", "content": f"q {i}"},
                {"role": "assistant", "content": "a", "name": "Bot"},
                {"role": "user", "content": "and?"},
                {"role": "assistant", "content": "b"},
            ]
        }
        for i in range(12)
    ]
    found = audit(connection, sources_of({"training": talk}), ENCODER, SPEC)
    assert (
        found.rows == {"training": 12} and found.tokens and found.lengths["prompt"]["median"] > 10
    )
    unread = named(found, "unread_keys")
    assert (
        unread is not None and "the key name, which is not trained on (12 rows)" in unread.message
    )
    refuses = PromptTemplate(
        "{{ raise_exception('not today') }}",
        "",
        ENCODER.template.eos,
        ENCODER.template.end_id,
        ENCODER.template.stop_ids,
        "2026-01-01",
    )
    refused = named(
        audit(
            connection, sources_of({"training": talk}), Encoder(refuses, Path(SPEC.folder)), SPEC
        ),
        "refused",
    )
    assert refused is not None and refused.count == 12 and "not today" in refused.message
