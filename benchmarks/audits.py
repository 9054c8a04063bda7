"""What the audit says of four public tables, and how long it takes; a person's look at three rows
of each stands in docs/evidence.md.

python benchmarks/audits.py --data FOLDER [--rows]
"""

import argparse
import time
from pathlib import Path

import marked

from tunesmith import Tunesmith
from tunesmith.documents.audit import AuditReport

TABLES = {
    "banking77": (
        "SELECT text AS prompt, label AS completion FROM"
        " '{0}/text_classification/banking77_train.csv'"
    ),
    "restaurant8k": (
        "SELECT prompt, completion FROM '{0}/text_generation/restaurant8k_slots_train.csv'"
    ),
    "GoEmotions": (
        "SELECT text AS prompt, label AS completion FROM"
        " '{0}/text_classification/goemotions_train.parquet'"
    ),
    "Davidson": (
        "SELECT text AS prompt, label AS completion FROM"
        " '{0}/text_classification/davidson_tweets_a.parquet'"
    ),
}
LARGE = (
    "SELECT 'message ' || i || ' about ' || md5(i::VARCHAR) AS prompt, 'team ' || i % 7 AS "
    "completion FROM range(100000) r(i)"
)
SHOWN = 8  # rows printed of each finding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument(
        "--rows", action="store_true", help="print rows of every finding, to be looked at"
    )
    args = parser.parse_args()
    parts = {}
    service = Tunesmith()
    for name, sql in TABLES.items():
        query, began = sql.format(args.data), time.monotonic()
        report = service.audit(query)
        seconds = time.monotonic() - began
        print(f"{name}: {seconds:.1f} s")
        parts[name] = findings_md(report, seconds)
        if args.rows:
            show_rows(query, report)
    began = time.monotonic()
    service.audit(LARGE)
    parts["large"] = (
        f"A made-up table of 100,000 rows takes {time.monotonic() - began:.0f} s (60 were asked), "
        "on two cores."
    )
    print(parts["large"])
    marked.write("evidence.md", parts)


def findings_md(report: AuditReport, seconds: float) -> str:
    lines = [
        (
            f"{report.rows['training']:,} rows in {seconds:.0f} s; {report.tokens:,} tokens an"
            f" epoch by {report.base_model}."
        ),
        "",
        "| finding | severity | rows | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{f.name}` | {f.severity} | {f.count:,} | {f.message.replace('|', chr(92) + '|')} |"
        for f in report.findings
    ]
    return "\n".join(lines)


def show_rows(query: str, report: AuditReport) -> None:
    import duckdb

    with duckdb.connect() as connection:
        rows = connection.execute(query).fetchall()
    for f in report.findings:
        print(f"\n{f.name}: {f.message}")
        for n in f.rows[:SHOWN]:
            print(f"  {n}: {rows[n - 1]}")


if __name__ == "__main__":
    main()
