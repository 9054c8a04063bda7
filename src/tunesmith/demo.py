"""The demo's table: support messages and the team that should answer, from a seeded generator.

Words alone do not decide. Most messages speak of two things and concern one ("the invoice is fine,
the parcel is not"), or the same thing goes to another team by what is asked of it. So word order,
negation and combinations carry the answer. Defects that real tables have are planted on purpose:
duplicates, leaks into the test rows, contradicting teams, an over-long message, empty teams, e-mail
addresses, one team that dominates.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

SEED = 7
TRAIN, VALID, TEST, NEW = 900, 150, 160, 12
DOMINANT, DOMINANT_SHARE = "billing", 0.25

# What each team looks after, and what goes wrong with it.
TOPICS: dict[str, tuple[list[str], list[str]]] = {
    "billing": (
        ["the invoice", "the last bill", "my direct debit", "the receipt", "the credit note"],
        [
            "shows the wrong amount",
            "was charged twice",
            "has not been booked",
            "has the wrong tax on it",
        ],
    ),
    "delivery": (
        ["the parcel", "my shipment", "the courier", "the tracking number", "the delivery slot"],
        [
            "never arrived",
            "is three days late",
            "went to the wrong address",
            "has not moved since Monday",
        ],
    ),
    "returns": (
        [
            "the return label",
            "my refund request",
            "the exchange",
            "the item I sent back",
            "the return box",
        ],
        [
            "was not accepted",
            "is still not confirmed",
            "got lost on the way back",
            "cannot be printed",
        ],
    ),
    "accounts": (
        [
            "my password",
            "the login page",
            "my user profile",
            "the sign-in code",
            "my e-mail address on file",
        ],
        ["does not work any more", "has to be changed", "keeps being rejected", "is locked"],
    ),
    "security": (
        [
            "a strange login",
            "a phishing mail",
            "an unknown device",
            "a suspicious payment",
            "a fake shop page",
        ],
        ["showed up this morning", "worries me a lot", "was reported to me", "used my name"],
    ),
    "repairs": (
        ["the screen", "the battery", "the charging port", "the hinge", "the keyboard"],
        ["broke after a week", "stopped working", "makes a clicking noise", "gets far too hot"],
    ),
    "software": (
        ["the app", "the last update", "the sync feature", "the export button", "the dark mode"],
        ["crashes on start", "freezes all the time", "shows an empty page", "lost my settings"],
    ),
    "sales": (
        ["a bulk order", "the price list", "a quote", "the student discount", "a demo unit"],
        [
            "would interest us",
            "is what I am looking for",
            "has to reach me this week",
            "needs your signature",
        ],
    ),
    "plans": (
        ["my subscription", "the yearly plan", "the family plan", "the free trial", "the renewal"],
        [
            "should end this month",
            "was extended without asking",
            "has to be moved to another tier",
            "needs to be paused",
        ],
    ),
    "stores": (
        [
            "the shop in the centre",
            "the store opening hours",
            "the pickup counter",
            "the shop parking",
            "the in-store workshop",
        ],
        [
            "was closed on Saturday",
            "is not the same as on the website",
            "could not find my order",
            "had no staff",
        ],
    ),
    "privacy": (
        [
            "my personal data",
            "the cookie banner",
            "the newsletter",
            "the data export",
            "my deletion request",
        ],
        ["must be removed", "was ignored", "comes without my consent", "is incomplete"],
    ),
    "press": (
        [
            "an interview",
            "the press kit",
            "a product photo",
            "the company history",
            "a podcast guest",
        ],
        [
            "is needed for an article",
            "would help our readers",
            "has no licence note",
            "is out of date",
        ],
    ),
}
TEAMS = sorted(TOPICS)

_OPENINGS = [
    "Hello,",
    "Hi there,",
    "Good morning,",
    "Dear team,",
    "Hey,",
    "To whom it may concern,",
    "",
    "",
    "",
    "",
]
_CLOSINGS = [
    "Thanks!",
    "Please help.",
    "Kind regards",
    "Can you look into it?",
    "Thank you in advance.",
    "",
    "",
    "",
    "",
    "",
]
_PLAIN = [
    "{b} {trouble}.",
    "I am writing because {b} {trouble}.",
    "Since yesterday {b} {trouble}.",
    "It seems that {b} {trouble}.",
]
# {a} is mentioned, {b} is meant. In half of them the one that is meant comes first.
_CONTRAST = [
    "{a} is fine, but {b} is not.",
    "{b} is not fine, but {a} is.",
    "this is not about {a}, it is about {b}.",
    "this is about {b}, it is not about {a}.",
    "I have no question about {a}, only about {b}.",
    "I have a question about {b}, none about {a}.",
    "first I thought of {a}, yet the trouble is {b}.",
    "the trouble is {b}, though first I thought of {a}.",
    "please forget what I wrote about {a}, now I need help with {b}.",
    "now I need help with {b}, please forget what I wrote about {a}.",
    "{a} has been solved, {b} has not been solved.",
    "{b} has not been solved, {a} has been solved.",
]
_REGIONS = ["north", "south", "east", "west"]


@dataclass(frozen=True)
class Ticket:
    id: int
    message: str
    team: str
    split: str
    region: str


def tickets(seed: int = SEED) -> list[Ticket]:
    """All rows of the demo's table, defects included, in a seeded order."""
    r = random.Random(seed)
    rows = [
        (*_message(r), split)
        for split, n in (("train", TRAIN), ("valid", VALID), ("test", TEST))
        for _ in range(n)
    ]
    rows += _defects(rows, r)
    r.shuffle(rows)
    return [
        Ticket(i + 1, message, team, split, r.choice(_REGIONS))
        for i, (message, team, split) in enumerate(rows)
    ]


def new_tickets(seed: int = SEED + 1) -> list[tuple[int, str]]:
    """Messages without a team."""
    r = random.Random(seed)
    return [(9001 + i, _message(r)[0]) for i in range(NEW)]


def _message(r: random.Random) -> tuple[str, str]:
    team = DOMINANT if r.random() < DOMINANT_SHARE else r.choice(TEAMS)
    b, trouble = (r.choice(words) for words in TOPICS[team])
    if r.random() < 0.35:
        body = r.choice(_PLAIN).format(b=b, trouble=trouble)
    else:
        other = r.choice([t for t in TEAMS if t != team])
        body = r.choice(_CONTRAST).format(a=r.choice(TOPICS[other][0]), b=b)
    text = " ".join(filter(None, (r.choice(_OPENINGS), body, r.choice(_CLOSINGS))))
    return text[0].upper() + text[1:], team


def _defects(rows: list[tuple[str, str, str]], r: random.Random) -> Iterator[tuple[str, str, str]]:
    train = [x for x in rows if x[2] == "train"]
    yield from r.sample(train, 12)  # exact duplicates
    yield from (
        (m.replace(".", " !").replace(",", ""), t, s) for m, t, s in r.sample(train, 12)
    )  # near duplicates
    yield from ((m, t, "test") for m, t, _ in r.sample(train, 8))  # leaks into the test rows
    yield from (
        (m, r.choice([x for x in TEAMS if x != t]), s) for m, t, s in r.sample(train, 6)
    )  # contradictions
    yield from ((m, "", s) for m, _, s in r.sample(train, 4))  # no team
    yield from (
        (f"{m} Write to {r.choice(['ana', 'li', 'sam'])}{n}@example.com", t, s)
        for n, (m, t, s) in enumerate(r.sample(train, 10))
    )
    yield (" ".join(m for m, _, _ in r.sample(train, 120)), "delivery", "train")  # over-long


def write(path: str) -> int:
    """Write the tables `tickets` and `new_tickets` into a DuckDB file; returns the number of
    tickets."""
    rows = tickets()
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE OR REPLACE TABLE tickets (id INTEGER, message VARCHAR, team VARCHAR, split "
            "VARCHAR, region VARCHAR)"
        )
        connection.executemany(
            "INSERT INTO tickets VALUES (?, ?, ?, ?, ?)",
            [[t.id, t.message, t.team, t.split, t.region] for t in rows],
        )
        connection.execute("CREATE OR REPLACE TABLE new_tickets (id INTEGER, message VARCHAR)")
        connection.executemany(
            "INSERT INTO new_tickets VALUES (?, ?)", [list(t) for t in new_tickets()]
        )
    return len(rows)
