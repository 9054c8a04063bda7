"""Tune a classifier on a file of texts and labels, see what it is worth, and load its export with
transformers alone.

    python examples/classify.py rows.csv --base all-minilm-l6-v2 --text "Where is my parcel?"

The file has the columns text and label. Exits 1 where the library gives a probability that differs
from ours by more than 1e-5.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from transformers import pipeline

from tunesmith import Tunesmith
from tunesmith.documents.verdict import sentence

CLOSE = 1e-5


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("file")
    p.add_argument("--base", default="all-minilm-l6-v2")
    p.add_argument("--name", default="classifier")
    p.add_argument("--text", nargs="+", default=["Where is my parcel?"])
    p.add_argument("--max-epochs", default="auto")
    args = p.parse_args()
    ts = Tunesmith()
    job = ts.create(args.name, args.base, args.file, max_epochs=args.max_epochs).wait()
    if job.error:
        sys.exit(job.error["message"])
    print(sentence(job.verdict) if job.verdict else "no verdict rows")
    print("least well told apart:")
    rows = ts.rows("predictions", job.id)
    wrong = [(r["label"], r["predicted"]) for r in rows if r["label"] != r["predicted"]]
    for label, given in sorted(set(wrong), key=wrong.count, reverse=True)[:5]:
        print(f"  {label} answered as {given}: {wrong.count((label, given))}")

    ours = ts.classify(job.name, args.text)
    with tempfile.TemporaryDirectory() as folder:
        ts.export(job.name, Path(folder) / "model", merged=True)
        theirs = pipeline("text-classification", model=str(Path(folder) / "model"), top_k=None)
        found = [{f["label"]: f["score"] for f in of} for of in theirs(args.text)]
    apart = max(
        abs(a.probabilities[n] - of[n]) for a, of in zip(ours, found, strict=True) for n in of
    )
    for text, a in zip(args.text, ours, strict=True):
        print(f"{a.label} ({a.probabilities[a.labels[0]]:.1%}): {text}")
    print(f"transformers alone gives the same probabilities to {apart:.1e}")
    sys.exit(apart > CLOSE)


if __name__ == "__main__":
    main()
