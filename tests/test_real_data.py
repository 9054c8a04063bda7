"""Real rows and a real small pretrained model, where they are at hand."""

from pathlib import Path

import pytest

import tunesmith
from conftest import need_base, next_word_rows
from tunesmith import Tunesmith, worker
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.jobs import JobStatus


def test_a_real_pretrained_model_writes_what_it_is_known_to_write(
    shared_data: Path, home: Path
) -> None:
    base = shared_data / "models" / "stories260k"
    [answer] = Tunesmith().complete(str(base), ["Once upon a time"], max_tokens=40)
    assert answer.prompt_tokens > 4 and answer.completion_tokens == 40 and "e" in answer.text


def test_a_real_pretrained_model_is_tuned_by_adapter_on_real_rows(
    shared_data: Path, home: Path
) -> None:
    base = shared_data / "models" / "stories260k"
    query = f"""SELECT prompt, completion FROM '{shared_data}/text_generation/restaurant8k_slots_train.csv' LIMIT 200"""
    with tunesmith.connect() as connection:
        statement = "SELECT finetune('CREATE', 'slots', ?, ?, NULL, '{\"method\": \"lora\", \"max_epochs\": 1}')"
        [(job_id,)] = connection.execute(statement, [str(base), query]).fetchall()
        job = Tunesmith().wait(job_id, timeout_s=200)
        assert job.status is JobStatus.SUCCEEDED, job.error
        first, last = connection.execute("""
            SELECT avg(training_loss) FILTER (step <= 5), avg(training_loss) FILTER (step > 15) FROM tunesmith.metrics
        """).fetchall()[0]
        assert (
            last < 0.8 * first
            and job.rows["train"]
            + job.rows["validation"]
            + job.rows["verdict"]
            + job.rows["rejected"]
            == 200
        )


def test_a_real_language_model_answers_alike_alone_and_beside_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_base(monkeypatch, "smollm2-135m-instruct-gguf")
    ts = Tunesmith()
    prompts = ["Name a colour.", "What is two and three? Answer with a number alone.", "Say hello."]
    together = ts.complete("smollm2-135m-instruct-gguf", prompts, max_tokens=12)
    alone = [ts.complete("smollm2-135m-instruct-gguf", [p], max_tokens=12)[0] for p in prompts]
    assert [c.text for c in together] == [c.text for c in alone]
    assert all(c.text.strip() for c in together)


def test_a_real_encoder_learns_three_of_the_banks_labels(
    shared_data: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_base(monkeypatch, "all-minilm-l6-v2")
    query = f"""SELECT text, label FROM '{shared_data}/text_classification/banking77_train.csv'
        WHERE label IN ('card_arrival', 'exchange_rate', 'passcode_forgotten')
        QUALIFY row_number() OVER (PARTITION BY label ORDER BY md5(text)) <= 40"""
    ts = Tunesmith()
    job = ts.create("bank", "all-minilm-l6-v2", query, max_epochs=2).wait(timeout_s=300)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.verdict and job.verdict["arms"]["tuned"] >= 0.8
    [found] = ts.classify("bank", ["When will my new card be here?"])
    assert found.label == "card_arrival"


FILES = [
    ("text_generation/gsm8k_train.jsonl", "*", 7473),
    ("text_generation/e2e_nlg_dev.csv", "*", 4672),
    ("text_generation/wikisql_10k.parquet", "*", 10_000),
    ("text_classification/banking77_train.csv", "text AS prompt, label AS completion", 10_003),
    ("text_classification/goemotions_train.parquet", "text AS prompt, label AS completion", 43_410),
]


@pytest.mark.parametrize(
    ("file", "columns", "rows"), FILES, ids=[f[0].rpartition("/")[2] for f in FILES]
)
def test_real_tables_are_frozen_with_every_row_accounted_for(
    shared_data: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    columns: str,
    rows: int,
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    job = Tunesmith().create(
        "m", "tunesmith-tiny", f"SELECT {columns} FROM '{shared_data / file}'", max_epochs=1
    )
    assert sum(job.rows.values()) == rows


def test_texts_of_real_rows_survive_the_template(shared_data: Path) -> None:
    import duckdb

    from tunesmith import catalog

    spec = catalog.find("tunesmith-tiny", Path())
    encoder = Encoder(PromptTemplate.of_base(Path(spec.folder)), Path(spec.folder))
    with duckdb.connect() as connection:
        texts = connection.execute(
            f"SELECT text FROM '{shared_data}/text_classification/davidson_tweets_a.parquet' LIMIT 2000"
        ).fetchall()
    for (text,) in texts:
        row = encoder.row([{"role": "user", "content": text}], text)
        assert encoder.decode(row.ids[row.n_prompt : -1]) == text


def test_a_test_without_its_data_skips_and_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import conftest

    monkeypatch.setattr(conftest, "DATA", Path("/nowhere"))
    with pytest.raises(pytest.skip.Exception, match="/nowhere.*TUNESMITH_TEST_DATA"):
        conftest.shared_data.__wrapped__()  # type: ignore[attr-defined]
    assert next_word_rows()
