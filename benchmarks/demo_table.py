"""How far words alone get on the demo's table: TF-IDF and logistic regression, trained on its train
rows, scored on its test rows.

python benchmarks/demo_table.py
"""

from collections import Counter

from tunesmith.data import baseline
from tunesmith.demo import tickets


def main() -> None:
    rows = [t for t in tickets() if t.team]
    train, test = ([t for t in rows if t.split == s] for s in ("train", "test"))
    wanted = [t.team for t in test]
    common = Counter(t.team for t in train).most_common(1)[0][0]
    print(f"{len(train)} training rows, {len(test)} verdict rows, {len(set(wanted))} teams")
    print(f"always {common!r:<24}{sum(w == common for w in wanted) / len(wanted):6.1%}")
    for name, grams in (("words", 1), ("words and pairs", 2)):
        model = baseline.fit(
            [t.message for t in train], [t.team for t in train], longest_gram=grams
        )
        print(f"TF-IDF on {name:<22}{model.score([t.message for t in test], wanted):6.1%}")


if __name__ == "__main__":
    main()
