"""Parts of a docs page that a benchmark writes, between two comments."""

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def write(page: str, parts: dict[str, str]) -> None:
    """Put each text between `<!-- benchmark: name -->` and `<!-- end: name -->` of docs/page."""
    file = DOCS / page
    text = file.read_text()
    for name, made in parts.items():
        start, end = f"<!-- benchmark: {name} -->\n", f"<!-- end: {name} -->"
        before, found, rest = text.partition(start)
        assert found, f"{page} has no {start.strip()}"
        text = before + start + made.rstrip() + "\n" + end + rest.partition(end)[2]
    file.write_text(text)
