"""The documents of a job for a reader: as text for terminals, as one self-contained HTML page."""

import textwrap
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from tunesmith.data.checks.rows import ROWS_SHOWN
from tunesmith.documents.audit import AuditReport, Finding
from tunesmith.documents.quote import Quote
from tunesmith.documents.verdict import sentence
from tunesmith.words import counted

MARKS = {"error": "✗", "warning": "!", "note": "·"}
CLASSES_SHOWN, ROWS_NAMED = 12, 8


ARMS = {
    "base": "{base} as it is",
    "examples": "{base} with {examples} examples in its prompt",
    "commonest": "always {always!r:.40}",
    "linear": "a linear model on words",
    "probe": "a linear model on what {base} makes of each text",
    "tuned": "{name}, tuned",
}
METRIC_WORDS = {
    "accuracy": "right labels",
    "label_f1": "F1 of a row's labels",
    "exact_set": "all labels right",
    "exact_match": "exact match",
    "number": "equal numbers",
    "json": "valid and equal JSON",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
}


def verdict_text(verdict: Mapping[str, Any] | None, base: str, name: str) -> list[str]:
    """The word first, then every arm on the same rows, then what must be known beside it."""
    if not verdict:
        return []
    words = {
        "base": base,
        "name": name,
        "examples": verdict["examples"],
        "always": verdict["commonest_answer"],
    }
    lines = [
        sentence(verdict),
        f"{METRIC_WORDS[verdict['metric']]} on {counted(verdict['n'], 'verdict row')}, which "
        f"chose nothing:",
    ]
    lines += [
        f"  {100 * score:5.1f} %  {ARMS[arm].format(**words)}"
        for arm, score in verdict["arms"].items()
    ]
    losses, kept = verdict["losses"], verdict["retention"]
    told = [f"rows won {len(verdict['won'])}, lost {len(verdict['lost'])}"]
    told.append(f"loss {' -> '.join(f'{loss:.3f}' for loss in losses.values())}")
    if kept:
        told.append(f"answers that stop {verdict['stop_rate']:.1%}")
        told.append(f"plain prose {kept['base']:.2f} -> {kept['tuned']:.2f} bits per byte")
    for metric, figures in verdict["other_metrics"].items():
        if "low" in figures:
            ends = f"{100 * figures['low']:+.1f} to {100 * figures['high']:+.1f}"
            against = metric.removeprefix("macro_f1 against ")
            told.append(
                f"macro F1 {100 * verdict['other_metrics']['macro_f1']['tuned']:.1f} %, "
                f"{100 * figures['difference']:+.1f} points against {against} ({ends})"
            )
        if "before" in figures:
            change = f"{figures['before']:.3f} -> {figures['after']:.3f}"
            told.append(f"{metric.replace('_', ' ')} {change}")
    lines.append("; ".join(told))
    return (
        lines
        + list(_bias_lines(verdict.get("bias")))
        + [f"note: {note}" for note in verdict["notes"]]
    )


def _bias_lines(bias: Mapping[str, Any] | None) -> Iterator[str]:
    if not bias:
        return
    for g in bias["gaps"]:
        yield (
            f"groups of {g['column']}: worst {g['tuned_worst']!r} {g['tuned_worst_score']:.1%} "
            f"(base {g['base_worst']!r} "
            f"{g['base_worst_score']:.1%}); best to worst {100 * g['tuned']:.1f} points (base "
            f"{100 * g['base']:.1f})"
        )
    if s := bias["swapped"]:
        yield (
            f"words for groups exchanged in {counted(s['rows'], 'prompt')}: {s['tuned']:.1%} of "
            f"the answers change (base {s['base']:.1%})"
        )
    for what in bias["not_measured"]:
        yield f"bias cannot be measured: {what}"


def quote_text(quote: Quote) -> str:
    minutes = [quote.epochs * s / 60 for s in (quote.seconds_per_epoch, quote.low, quote.high)]
    words = (
        ""
        if quote.linear is None
        else (
            f"\nwithout  a linear model on words is right on {quote.linear:.1%} of "
            f"{counted(quote.linear_rows, 'validation row')}, in seconds: "
            "if that is enough, you need no language model"
        )
    )
    if quote.classifier:
        words += (
            f"\nlabels   a linear model on what {quote.classifier} makes of each text is right on "
            f"{quote.classifier_score:.1%}, in {quote.classifier_seconds:.0f} s; it is tuned by "
            f"--base {quote.classifier}"
        )
    return (
        f"{quote.base_model}, {quote.method}: {counted(quote.tokens_per_epoch, 'token')} an "
        f"epoch, at most "
        f"{counted(quote.epochs, 'epoch')} of "
        f"{counted(quote.steps // quote.epochs, 'step')}\n"
        f"time     {minutes[0]:.1f} minutes ({minutes[1]:.1f} to {minutes[2]:.1f}); "
        f"{quote.seconds_per_epoch:.1f} s an epoch on "
        f"{counted(quote.threads, 'thread')}; patience may end it earlier\n"
        f"memory   {quote.memory_mb:,} MB at its peak; the saved model takes "
        f"{quote.model_mb:,.1f} MB\n"
        f"price    {quote.credits:.6g} credits by your price table{words}"
    )


def used_text(quote: Mapping[str, Any] | None, used: Mapping[str, Any] | None) -> str:
    """Quoted against used, in one line; empty until both are known."""
    if not quote or not used:
        return ""
    parts = []
    for what, unit in (
        ("tokens_per_epoch", "tokens an epoch"),
        ("seconds_per_epoch", "s an epoch"),
        ("memory_mb", "MB"),
    ):
        error = used[what] / quote[what] - 1
        parts.append(
            f"{used[what]:,} {unit} "
            f"({'as quoted' if used[what] == quote[what] else f'{error:+.0%} of {quote[what]:,}'})"
        )
    return "used against quoted: " + ", ".join(parts)


def audit_text(report: AuditReport) -> str:
    """The counts, then the findings, the gravest first, each with its rows, its advice and the
    start of its SQL."""
    lines = list(_facts(report))
    for f in report.findings:
        lines += [
            "",
            f"{MARKS[f.severity]} {f.name} ({f.source}): {f.message}",
            *_indented(_rows_named(f)),
            *_indented(f.advice),
        ]
    if not report.findings:
        lines += ["", "nothing to mend was found"]
    lines += [""] + [f"not measured: {what}" for what in report.not_measured]
    if report.clean_sql and any(f.fix for f in report.findings):
        lines.append("the SQL of every fix: --json; all of them as a view: --write-view NAME")
    return "\n".join(lines).rstrip()


def _facts(report: AuditReport) -> Iterator[str]:
    parts = [f"{n:,} {source}" for source, n in report.rows.items()]
    yield (
        f"rows: {', '.join(parts)}; {counted(report.tokens or 0, 'token')} an epoch by "
        f"{report.base_model}"
    )
    for part, q in report.lengths.items():
        yield (
            f"{part}: {q['median']} tokens in the middle, {q['p95']} at 95 %, {q['longest']} at "
            f"most"
        )
    if report.classes:
        shown = ", ".join(f"{c} {n}" for c, n in list(report.classes.items())[:CLASSES_SHOWN])
        more = f", … ({len(report.classes)} in all)" if len(report.classes) > CLASSES_SHOWN else ""
        entropy = (
            ""
            if report.entropy is None
            else f"; normalised entropy {report.entropy:.2f}, commonest to rarest "
            f"{report.imbalance:.1f}"
        )
        yield f"answers: {shown}{more}{entropy}"
    if report.languages:
        yield "languages: " + ", ".join(
            f"{name} {share:.0%}" for name, share in list(report.languages.items())[:5]
        )
    for g in report.groups:
        tells = (
            "cannot be measured"
            if g.mutual_information is None
            else f"{g.mutual_information:.1%} of the answer, p = {g.p_value:.2g}"
        )
        shown = ", ".join(f"{v or '(empty)'} {n}" for v, n in list(g.counts.items())[:6])
        yield f"group {g.column}: {shown}; tells {tells}"


def _rows_named(f: Finding) -> str:
    if not f.rows:
        return ""
    return (
        "rows "
        + ", ".join(map(str, f.rows[:ROWS_NAMED]))
        + (f", … ({f.count} in all)" if f.count > ROWS_NAMED else "")
    )


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent="    ", subsequent_indent="    ")


def audit_html(report: AuditReport) -> str:
    """One page without scripts or links to anything outside."""
    bars = "".join(
        f"<tr><td>{escape(c)}</td><td class=n>{n}</td><td><i "
        f"style='width:{100 * n / max(report.classes.values()):.0f}%'></i></td></tr>"
        for c, n in report.classes.items()
    )
    findings = (
        "".join(_finding_html(f) for f in report.findings) or "<p>Nothing to mend was found.</p>"
    )
    groups = "".join(_group_html(g.column, g.counts, g.by_answer) for g in report.groups)
    not_measured = "".join(f"<p>Not measured: {escape(t)}</p>" for t in report.not_measured)
    return _PAGE.format(
        title=f"Audit: {counted(sum(report.rows.values()), 'row')}",
        body="".join(f"<p>{escape(line)}</p>" for line in _facts(report))
        + f"<h2>{len(report.findings)} findings</h2>{findings}{not_measured}"
        + (f"<h2>Answers</h2><table class=bars>{bars}</table>" if bars else "")
        + (f"<h2>Groups</h2>{groups}" if groups else "")
        + f"<h2>The training query with the fixes</h2><pre>{escape(report.clean_sql)}</pre>",
    )


def _finding_html(f: Finding) -> str:
    rows = ", ".join(map(str, f.rows)) + (
        f" … ({ROWS_SHOWN} of {f.count} shown)" if f.count > len(f.rows) > 0 else ""
    )
    return (
        f"<details class={f.severity}><summary><b>{escape(f.name)}</b> {f.source}: "
        f"{escape(f.message)}</summary><p>{escape(f.advice)}</p>"
        + (f"<p>Rows: {rows}</p>" if rows else "")
        + (f"<pre>{escape(f.fix)}</pre>" if f.fix else "")
        + "</details>"
    )


def _group_html(
    column: str, values: Mapping[str, int], by_answer: Mapping[str, Mapping[str, int]]
) -> str:
    head = "".join(f"<th>{escape(v or '(empty)')}</th>" for v in values)
    body = "".join(
        f"<tr><td>{escape(answer)}</td>"
        + "".join(f"<td class=n>{row.get(v, 0)}</td>" for v in values)
        + "</tr>"
        for answer, row in by_answer.items()
    )
    total = "<tr><td>all</td>" + "".join(f"<td class=n>{n}</td>" for n in values.values()) + "</tr>"
    return f"<h3>{escape(column)}</h3><table><tr><th></th>{head}</tr>{body}{total}</table>"


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
  color:#222;background:#fff}}
pre{{white-space:pre-wrap;background:#f4f4f4;padding:.6rem;overflow-wrap:anywhere}}
td,th{{padding:.1rem .6rem;text-align:left}}
.n{{text-align:right}} .bars td:last-child{{width:20rem}}
i{{display:block;height:.7rem;background:#4a78b5}}
details{{border-left:4px solid #999;padding:.2rem .8rem;margin:.5rem 0}}
.error{{border-color:#b3261e}} .warning{{border-color:#c98a00}}
summary{{cursor:pointer}}</style></head><body><h1>{title}</h1>{body}</body></html>
"""
