"""The corpus the query gate is tried on: a shop with secrets, ordinary training queries, hostile
ones, and mutants of both.

Data and a fixture, no judgement: who runs a query and what counts as a leak is `gate.py`'s. A query
is one line of a block (`##` lines are headings); `{canary_file}`, `{database_file}` and
`{out_file}` are filled in by `fill`.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb

CANARY = "tunesmith-canary-7f3a"
GRANTED = {"shop.main.tickets", "shop.main.orders", "shop.sales.leads"}

_SHOP = r"""
CREATE SCHEMA sales; CREATE SCHEMA hr;
CREATE TABLE tickets (id INTEGER, message VARCHAR, team VARCHAR, created_at TIMESTAMP, meta JSON, tags VARCHAR[],
    who STRUCT(name VARCHAR, vip BOOLEAN), score DOUBLE, kind UNION(num INTEGER, str VARCHAR), extra MAP(VARCHAR, INTEGER));
INSERT INTO tickets SELECT i,
    list_extract(['My card was charged twice', 'The parcel never arrived', 'App crashes on login', 'How do I change my plan?',
        'Rechnung fehlt, bitte senden', 'La livraison est en retard', '返金してください', 'Não consigo entrar na conta',
        'Where is my refund 💸', 'Screen is black after update'], i % 10 + 1) || ' (order ' || (1000 + i) || ')',
    CASE WHEN i % 13 = 12 THEN NULL ELSE list_extract(['billing', 'shipping', 'tech', 'account'], i % 4 + 1) END,
    TIMESTAMP '2025-01-01 08:00:00' + to_hours((i * 37)::INTEGER),
    json_object('lang', list_extract(['en', 'de', 'fr', 'ja', 'pt'], i % 5 + 1), 'priority', i % 3 + 1, 'reply', 'We look into case ' || i,
        'labels', ['l' || (i % 4), 'web'], 'customer', {'tier': CASE WHEN i % 7 = 0 THEN 'gold' ELSE 'free' END}),
    list_slice(['urgent', 'web', 'mobile', 'repeat'], 1, (i % 4 + 1)::INTEGER),
    {'name': list_extract(['Ana', 'Björn', 'Chidi', 'Dana'], i % 4 + 1), 'vip': i % 7 = 0}, i / 60.0,
    CASE WHEN i % 2 = 0 THEN union_value(num := i::INTEGER) ELSE union_value(str := 'k' || i)::UNION(num INTEGER, str VARCHAR) END,
    MAP {'views': (i * 3 % 11)::INTEGER, 'replies': (i % 5)::INTEGER}
    FROM range(60) r(i);
CREATE TABLE orders (id INTEGER, ticket_id INTEGER, amount DECIMAL(10, 2), "at" DATE, status VARCHAR);
INSERT INTO orders SELECT i, i * 7 % 60, 9.99 + i * 1.5, DATE '2025-01-01' + (i * 2)::INTEGER, list_extract(['paid', 'open', 'refunded'], i % 3 + 1)
    FROM range(50) r(i);
CREATE TABLE sales.leads (id INTEGER, text VARCHAR, label VARCHAR, "at" DATE);
INSERT INTO sales.leads SELECT i, list_extract(['Wants a demo', 'Asks for prices', 'Only looking', 'Needs SSO'], i % 4 + 1) || ' no ' || i,
    list_extract(['hot', 'warm', 'cold', 'hot'], i % 4 + 1), DATE '2025-02-01' + i::INTEGER FROM range(40) r(i);
CREATE TABLE secret (id INTEGER, word VARCHAR); INSERT INTO secret VALUES (1, '{canary}');
CREATE TABLE hr.salaries (id INTEGER, name VARCHAR, amount INTEGER, note VARCHAR); INSERT INTO hr.salaries VALUES (1, 'Ana', 4200, '{canary}');
CREATE TABLE hr.tickets (id INTEGER, message VARCHAR, team VARCHAR); INSERT INTO hr.tickets VALUES (1, '{canary}', 'hr'); -- a granted short name
CREATE SCHEMA hr.main; -- schemas nest in 2.0: `shop.hr.main.tickets` has the first and the last two parts of a granted name
CREATE TABLE hr.main.tickets (id INTEGER, message VARCHAR, team VARCHAR); INSERT INTO hr.main.tickets VALUES (1, '{canary}', 'hr');
CREATE TYPE hr.grade AS ENUM ('{canary}', 'b');
CREATE VIEW leaky AS SELECT * FROM secret;
CREATE MACRO peek() AS (SELECT max(word) FROM secret);
CREATE MACRO peek_table() AS TABLE SELECT * FROM secret;
CREATE SEQUENCE numbers;
CHECKPOINT;
"""


def make_shop(path: Path, canary_file: Path) -> None:
    """Write the database (named `shop.duckdb`, so that its catalog is `shop`) and the file nobody
    may read, also as `.json` and `.parquet`."""
    with duckdb.connect(str(path), config={"threads": "1"}) as connection:
        connection.execute(_SHOP.replace("{canary}", CANARY))
        connection.execute(f"COPY secret TO '{canary_file}' (FORMAT csv)")
        for form in ("json", "parquet"):
            connection.execute(f"COPY secret TO '{canary_file}.{form}' (FORMAT {form})")


def fill(sql: str, *, canary_file: Path, database_file: Path, out_file: Path) -> str:
    """The query with the paths of this run in place of the placeholders."""
    for name, path in (
        ("canary_file", canary_file),
        ("database_file", database_file),
        ("out_file", out_file),
    ):
        sql = sql.replace(f"{{{name}}}", str(path))
    return sql


def _lines(block: str) -> list[str]:
    """One query a line; `⏎` stands for a line break inside a query."""
    return [
        line.replace("⏎", "\n")
        for line in map(str.strip, block.splitlines())
        if line and not line.startswith("##")
    ]


ORDINARY: list[str] = _lines(r"""
## names, aliases, order of words
SELECT message AS prompt, team AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM main.tickets
SELECT message AS prompt, team AS completion FROM shop.main.tickets WHERE team IS NOT NULL
SELECT text AS prompt, label AS completion FROM sales.leads
SELECT text AS prompt, label AS completion FROM shop.sales.leads WHERE label <> 'cold'
SELECT t.message AS prompt, t.team AS completion FROM tickets t
SELECT t.message prompt, t.team completion FROM tickets AS t WHERE t.team = 'billing'
select message as prompt, team as completion from TICKETS where Team in ('billing', 'tech')
SELECT "message" AS "prompt", "team" AS "completion" FROM "tickets"
SELECT "t"."message" AS prompt, "t"."team" AS completion FROM "shop"."main"."tickets" "t"
SELECT main.tickets.message AS prompt, main.tickets.team AS completion FROM main.tickets
SELECT tickets.message AS prompt, tickets.team AS completion FROM tickets;
FROM tickets SELECT message AS prompt, team AS completion
FROM tickets t SELECT t.message AS prompt, t.team AS completion WHERE t.score > 0.5 ORDER BY t.id
FROM sales.leads SELECT prompt: text, completion: label
SELECT * FROM (SELECT message AS prompt, team AS completion FROM tickets)
FROM (SELECT text AS prompt, label AS completion FROM sales.leads)
SELECT prompt, completion FROM (SELECT id, message, team FROM tickets) AS t(id, prompt, completion)
SELECT id, message AS prompt, team AS completion, created_at FROM tickets ORDER BY created_at
SELECT message AS prompt, team AS completion, id, score, CASE WHEN id % 10 = 0 THEN 'test' ELSE 'train' END AS split FROM tickets
/* routing, v3 */ SELECT message AS prompt, /* the label */ team AS completion FROM tickets -- all of them
-- training set of the support team⏎SELECT message AS prompt,⏎       team    AS completion⏎FROM   tickets⏎WHERE  team IS NOT NULL⏎  AND  length(message) > 10⏎ORDER BY id;
## filters and order
SELECT message AS prompt, team AS completion FROM tickets WHERE team IS NOT NULL AND message IS NOT NULL LIMIT 40
SELECT message AS prompt, team AS completion FROM tickets ORDER BY id DESC LIMIT 20 OFFSET 10
SELECT message AS prompt, team AS completion FROM tickets ORDER BY ALL
SELECT message AS prompt, team AS completion FROM tickets ORDER BY team NULLS LAST, message
SELECT message AS prompt, team AS completion FROM tickets ORDER BY 2, 1 LIMIT 30
SELECT message AS prompt, team AS completion FROM tickets LIMIT 50%
SELECT message AS prompt, team AS completion FROM tickets WHERE id BETWEEN 5 AND 45 AND NOT (team = 'tech' OR score < 0.1)
SELECT message AS prompt, team AS completion FROM tickets WHERE message ILIKE '%order%' AND message NOT LIKE 'App%'
SELECT message AS prompt, team AS completion FROM tickets WHERE message SIMILAR TO '.*(card|parcel).*' OR regexp_matches(message, '\d{4}')
SELECT message AS prompt, team AS completion FROM tickets WHERE team IS DISTINCT FROM 'account' AND score IS NOT NULL
SELECT message AS prompt, team AS completion FROM tickets WHERE (team, id % 2) IN (('billing', 0), ('tech', 0))
SELECT message AS prompt, team AS completion FROM tickets WHERE hash(id) % 10 < 8
SELECT message AS prompt, team AS completion FROM tickets WHERE md5(message) < 'c'
SELECT message AS prompt, team AS completion, CASE WHEN hash(message) % 100 < 90 THEN 'train' ELSE 'eval' END AS split FROM tickets
SELECT message AS prompt, team AS completion FROM tickets WHERE created_at >= '2025-01-10' AND created_at < TIMESTAMP '2025-03-01 00:00:00'
SELECT message AS prompt, team AS completion FROM tickets WHERE message LIKE '%返金%' OR message LIKE 'Não%' OR message LIKE '%💸%'
SELECT message AS prompt, team AS completion FROM tickets USING SAMPLE 50 PERCENT (bernoulli, 42)
SELECT message AS prompt, team AS completion FROM tickets USING SAMPLE reservoir(20 ROWS) REPEATABLE (7)
SELECT message AS prompt, team AS completion FROM tickets TABLESAMPLE bernoulli(60 PERCENT) REPEATABLE (42)
SELECT message AS prompt, team AS completion FROM tickets TABLESAMPLE 20 ROWS
## text
SELECT 'Which team? ' || message AS prompt, team AS completion FROM tickets WHERE team IS NOT NULL
SELECT concat('Ticket: ', message, E'\nTeam:') AS prompt, concat(' ', team) AS completion FROM tickets
SELECT concat_ws(' | ', message, who.name, team) AS prompt, coalesce(team, 'nobody') AS completion FROM tickets
SELECT replace(message, 'order', 'Order') AS prompt, upper(team) AS completion FROM tickets
SELECT regexp_replace(message, '[0-9]+', '<number>', 'g') AS prompt, team AS completion FROM tickets
SELECT message AS prompt, regexp_extract(message, 'order (\d+)', 1) AS completion FROM tickets
SELECT trim(substr(message, 1, 40)) AS prompt, left(team, 4) AS completion FROM tickets
SELECT substring(message, 1, 80) AS prompt, right(message, 12) AS completion FROM tickets
SELECT substring(message FROM 1 FOR 60) AS prompt, trim(BOTH ' ' FROM lower(team)) AS completion FROM tickets
SELECT split_part(message, '(', 1) AS prompt, split_part(split_part(message, '(', 2), ')', 1) AS completion FROM tickets
SELECT string_split(message, ' ')[1] AS prompt, string_split(message, ' ')[-1] AS completion FROM tickets
SELECT message[1:30] AS prompt, team AS completion FROM tickets WHERE starts_with(message, 'My') OR contains(message, 'refund')
SELECT message.trim().lower() AS prompt, team.upper() AS completion FROM tickets
SELECT reverse(message) AS prompt, message AS completion FROM tickets WHERE length(message) < 200
SELECT nfc_normalize(message) AS prompt, strip_accents(message) AS completion FROM tickets
SELECT translate(message, '()', '[]') AS prompt, ltrim(rtrim(team)) AS completion FROM tickets WHERE position('order' IN message) > 0
SELECT 'Übersetze: ' || message AS prompt, '答え：' || coalesce(team, '—') AS completion FROM tickets
SELECT $$It's a "ticket": $$ || message AS prompt, 'it''s ' || team AS completion FROM tickets
SELECT message COLLATE NOCASE AS prompt, team AS completion FROM tickets WHERE team COLLATE NOCASE = 'BILLING'
SELECT message || chr(10) || 'Tags: ' || array_to_string(tags, ', ') AS prompt, team AS completion FROM tickets
## conditions and casts
SELECT message AS prompt, CASE WHEN score > 0.66 THEN 'high' WHEN score > 0.33 THEN 'medium' ELSE 'low' END AS completion FROM tickets
SELECT message AS prompt, CASE team WHEN 'tech' THEN 'engineering' ELSE team END AS completion FROM tickets
SELECT message AS prompt, if(who.vip, 'vip', 'regular') AS completion FROM tickets
SELECT message AS prompt, nullif(team, 'account') AS completion FROM tickets WHERE nullif(team, 'account') IS NOT NULL
SELECT message AS prompt, score::INTEGER::VARCHAR AS completion FROM tickets
SELECT message AS prompt, CAST(round(score * 100) AS INTEGER)::VARCHAR || '%' AS completion FROM tickets
SELECT message AS prompt, TRY_CAST(regexp_extract(message, '\d+') AS INTEGER)::VARCHAR AS completion FROM tickets
SELECT message AS prompt, greatest(least(id, 50), 10)::VARCHAR AS completion FROM tickets
SELECT message AS prompt, ifnull(team, 'none') AS completion FROM tickets
SELECT message AS prompt, (score >= 0.5)::VARCHAR AS completion FROM tickets
SELECT ticket_id::TEXT || ': ' || status AS prompt, amount::VARCHAR AS completion FROM orders
## dates
SELECT message AS prompt, strftime(created_at, '%Y-%m-%d') AS completion FROM tickets
SELECT message AS prompt, dayname(created_at) AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets WHERE date_trunc('month', created_at) = DATE '2025-02-01'
SELECT message AS prompt, team AS completion FROM tickets WHERE created_at > DATE '2025-04-01' - INTERVAL 30 DAY
SELECT message AS prompt, extract(hour FROM created_at)::VARCHAR AS completion FROM tickets
SELECT message AS prompt, date_diff('day', created_at, TIMESTAMP '2025-06-01')::VARCHAR AS completion FROM tickets
SELECT o.status AS prompt, monthname(o."at") AS completion FROM orders o WHERE year(o."at") = 2025
SELECT text AS prompt, CASE WHEN dayofweek("at") IN (0, 6) THEN 'weekend' ELSE 'weekday' END AS completion FROM sales.leads
## JSON, lists, structs, maps, unions
SELECT message AS prompt, meta->>'lang' AS completion FROM tickets
SELECT message AS prompt, meta->>'$.customer.tier' AS completion FROM tickets
SELECT message AS prompt, meta->'customer'->>'tier' AS completion FROM tickets WHERE (meta->>'priority')::INTEGER >= 2
SELECT message AS prompt, json_extract_string(meta, '$.reply') AS completion FROM tickets
SELECT message AS prompt, json_extract(meta, '$.labels[0]')::VARCHAR AS completion FROM tickets
SELECT message AS prompt, meta.reply::VARCHAR AS completion FROM tickets
SELECT message AS prompt, json_object('team', team, 'vip', who.vip)::VARCHAR AS completion FROM tickets
SELECT message AS prompt, to_json({'team': team, 'tags': tags})::VARCHAR AS completion FROM tickets
SELECT message AS prompt, json_array_length(meta, '$.labels')::VARCHAR AS completion FROM tickets
SELECT meta->>'reply' AS completion, message AS prompt FROM tickets WHERE meta->>'lang' = 'de' AND json_valid(meta)
SELECT message AS prompt, tags[1] AS completion FROM tickets
SELECT message AS prompt, array_to_string(list_sort(tags), ',') AS completion FROM tickets WHERE list_contains(tags, 'mobile')
SELECT message AS prompt, array_to_string(list_transform(tags, lambda x: upper(x)), ' ') AS completion FROM tickets
SELECT message AS prompt, array_to_string(list_filter(tags, lambda x: x <> 'web'), ' ') AS completion FROM tickets WHERE len(tags) > 1
SELECT message AS prompt, array_to_string([upper(x) for x in tags if x <> 'urgent'], ', ') AS completion FROM tickets
SELECT message AS prompt, array_to_string(list_transform(tags, lambda x, i: i || '.' || x), ' ') AS completion FROM tickets
SELECT message AS prompt, unnest(tags) AS completion FROM tickets
SELECT message AS prompt, tag AS completion FROM tickets, unnest(tags) AS u(tag)
SELECT t.message AS prompt, u.tag AS completion FROM tickets t CROSS JOIN LATERAL (SELECT unnest(t.tags) AS tag) u
SELECT message AS prompt, len(tags)::VARCHAR AS completion FROM tickets WHERE 'urgent' = ANY(tags)
SELECT message AS prompt, list_aggregate(tags, 'string_agg', '+') AS completion FROM tickets
SELECT message AS prompt, array_to_string(list_distinct(tags || ['new']), ' ') AS completion FROM tickets
SELECT message AS prompt, who.name AS completion FROM tickets WHERE who.vip
SELECT message AS prompt, struct_extract(who, 'name') AS completion FROM tickets
SELECT message AS prompt, who['name'] AS completion FROM tickets t WHERE (t.who).vip = false
SELECT message AS prompt, extra['views']::VARCHAR AS completion FROM tickets
SELECT message AS prompt, array_to_string(map_keys(extra), ',') AS completion FROM tickets WHERE element_at(extra, 'replies')[1] > 1
SELECT message AS prompt, kind.str AS completion FROM tickets WHERE union_tag(kind) = 'str'
SELECT message AS prompt, coalesce(kind.str, kind.num::VARCHAR) AS completion FROM tickets
## joins
SELECT t.message AS prompt, o.status AS completion FROM tickets t JOIN orders o ON o.ticket_id = t.id
SELECT t.message AS prompt, coalesce(o.status, 'no order') AS completion FROM tickets t LEFT JOIN orders o ON o.ticket_id = t.id
SELECT t.message AS prompt, o.status AS completion FROM tickets t RIGHT OUTER JOIN orders o ON t.id = o.ticket_id AND o.amount > 20
SELECT coalesce(t.message, l.text) AS prompt, coalesce(t.team, l.label) AS completion FROM tickets t FULL JOIN sales.leads l ON l.id = t.id
SELECT message AS prompt, status AS completion FROM tickets JOIN orders USING (id)
SELECT t.message AS prompt, l.text AS completion FROM tickets t CROSS JOIN sales.leads l WHERE t.id = l.id
SELECT message AS prompt, label AS completion FROM tickets NATURAL JOIN sales.leads
SELECT t.message AS prompt, o.status AS completion FROM tickets t, orders o WHERE t.id = o.ticket_id
SELECT t.message AS prompt, o.status AS completion FROM tickets t ASOF JOIN orders o ON t.created_at >= o."at"
SELECT t.message AS prompt, o.status AS completion FROM tickets t ASOF LEFT JOIN orders o ON t.id = o.ticket_id AND t.created_at >= o."at"
SELECT message AS prompt, team AS completion FROM tickets SEMI JOIN orders ON orders.ticket_id = tickets.id
SELECT message AS prompt, team AS completion FROM tickets t ANTI JOIN orders o ON o.ticket_id = t.id
SELECT message AS prompt, label AS completion FROM tickets POSITIONAL JOIN sales.leads WHERE label IS NOT NULL
SELECT t.message AS prompt, x.status AS completion FROM tickets t, LATERAL (SELECT status FROM orders o WHERE o.ticket_id = t.id ORDER BY o.amount DESC LIMIT 1) x
SELECT t.message AS prompt, x.n::VARCHAR AS completion FROM tickets t LEFT JOIN LATERAL (SELECT count(*) AS n FROM orders o WHERE o.ticket_id = t.id) x ON true
SELECT a.message AS prompt, b.message AS completion FROM tickets a JOIN tickets b ON a.id + 1 = b.id AND a.team IS NOT DISTINCT FROM b.team OR a.id = b.id
SELECT t.message AS prompt, o.status || '/' || l.label AS completion FROM (tickets t JOIN orders o ON o.ticket_id = t.id) JOIN shop.sales.leads l ON l.id = o.id
SELECT t.message AS prompt, d.status AS completion FROM main.tickets t JOIN (SELECT ticket_id, max(status) AS status FROM shop.main.orders GROUP BY 1) d ON d.ticket_id = t.id
## subqueries
SELECT message AS prompt, team AS completion FROM tickets WHERE id IN (SELECT ticket_id FROM orders WHERE status = 'refunded')
SELECT message AS prompt, team AS completion FROM tickets t WHERE EXISTS (SELECT 1 FROM orders o WHERE o.ticket_id = t.id)
SELECT message AS prompt, team AS completion FROM tickets t WHERE NOT EXISTS (FROM orders o WHERE o.ticket_id = t.id AND o.status = 'open')
SELECT message AS prompt, (SELECT max(status) FROM orders o WHERE o.ticket_id = t.id) AS completion FROM tickets t
SELECT message AS prompt, team AS completion FROM tickets WHERE score > (SELECT avg(score) FROM tickets)
SELECT message AS prompt, team AS completion FROM tickets WHERE score >= ALL (SELECT amount / 1000 FROM orders)
SELECT message AS prompt, team AS completion FROM tickets WHERE id = ANY (SELECT ticket_id FROM orders)
SELECT message AS prompt, array_to_string(ARRAY(SELECT status FROM orders o WHERE o.ticket_id = t.id ORDER BY o.id), ',') AS completion FROM tickets t
SELECT x.prompt, x.completion FROM (SELECT message AS prompt, team AS completion, row_number() OVER (ORDER BY id) AS n FROM tickets) x WHERE x.n <= 30
## CTEs
WITH good AS (SELECT * FROM tickets WHERE team IS NOT NULL) SELECT message AS prompt, team AS completion FROM good
WITH good AS (SELECT id, message FROM tickets), paid AS (SELECT ticket_id, status FROM orders) SELECT message AS prompt, status AS completion FROM good JOIN paid ON ticket_id = good.id
WITH a AS (SELECT * FROM tickets), b AS (SELECT * FROM a WHERE score > 0.2), c AS (SELECT * FROM b WHERE team <> 'tech') SELECT message AS prompt, team AS completion FROM c
WITH outer_one AS (WITH inner_one AS (SELECT message, team FROM tickets) SELECT * FROM inner_one) SELECT message AS prompt, team AS completion FROM outer_one
WITH t(prompt, completion) AS (SELECT message, team FROM tickets) FROM t
WITH t AS MATERIALIZED (SELECT message, team FROM tickets) SELECT message AS prompt, team AS completion FROM t
WITH t AS NOT MATERIALIZED (SELECT message, team FROM tickets) SELECT message AS prompt, team AS completion FROM t
WITH tickets AS (SELECT * FROM main.tickets WHERE id < 30) SELECT message AS prompt, team AS completion FROM tickets
WITH orders AS (SELECT message, team FROM tickets) SELECT message AS prompt, team AS completion FROM orders
WITH leads AS (SELECT * FROM sales.leads) SELECT text AS prompt, label AS completion FROM leads
WITH secret AS (SELECT message, team FROM tickets) SELECT message AS prompt, team AS completion FROM secret
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 20) SELECT t.message AS prompt, t.team AS completion FROM n JOIN tickets t ON t.id = n.i
WITH RECURSIVE chain AS (SELECT id, message, 1 AS depth FROM tickets WHERE id = 0 UNION ALL SELECT t.id, t.message, c.depth + 1 FROM chain c JOIN tickets t ON t.id = c.id + 1 WHERE c.depth < 10) SELECT message AS prompt, depth::VARCHAR AS completion FROM chain
WITH labels(team, name) AS (VALUES ('billing', 'Money'), ('tech', 'Machines')) SELECT message AS prompt, name AS completion FROM tickets JOIN labels USING (team)
SELECT prompt, completion FROM (WITH x AS (SELECT message AS prompt, team AS completion FROM tickets) SELECT * FROM x) y
SELECT message AS prompt, l.name AS completion FROM tickets JOIN (VALUES ('billing', 'Money'), ('tech', 'Machines')) l(team, name) USING (team)
## set operations
SELECT message AS prompt, team AS completion FROM tickets UNION ALL SELECT text, label FROM sales.leads
SELECT message AS prompt, team AS completion FROM tickets UNION SELECT text, label FROM sales.leads ORDER BY 1 LIMIT 50
SELECT message AS prompt, team AS completion FROM tickets UNION ALL BY NAME SELECT label AS completion, text AS prompt FROM sales.leads
SELECT message AS prompt, team AS completion FROM tickets INTERSECT SELECT message, team FROM tickets WHERE id < 20
SELECT message AS prompt, team AS completion FROM tickets EXCEPT SELECT message, team FROM tickets WHERE id < 20
(SELECT message AS prompt, team AS completion FROM tickets LIMIT 5) UNION ALL (SELECT text, label FROM sales.leads LIMIT 5) UNION ALL SELECT status, amount::VARCHAR FROM orders
WITH u AS (SELECT message AS prompt, team AS completion FROM tickets UNION ALL SELECT text, label FROM sales.leads) SELECT * FROM u WHERE completion IS NOT NULL
## groups, windows
SELECT team AS prompt, string_agg(message, '; ' ORDER BY id) AS completion FROM tickets GROUP BY team
SELECT team AS prompt, count(*)::VARCHAR AS completion FROM tickets GROUP BY ALL HAVING count(*) > 5
SELECT team AS prompt, any_value(message) AS completion FROM tickets GROUP BY 1
SELECT coalesce(team, 'all') AS prompt, count(*)::VARCHAR AS completion FROM tickets GROUP BY ROLLUP (team)
SELECT coalesce(team, meta->>'lang') AS prompt, count(*)::VARCHAR AS completion FROM tickets GROUP BY GROUPING SETS ((team), (meta->>'lang'))
SELECT team AS prompt, (count(*) FILTER (WHERE who.vip))::VARCHAR AS completion FROM tickets GROUP BY team
SELECT team AS prompt, arg_max(message, score) AS completion FROM tickets WHERE team IS NOT NULL GROUP BY team
SELECT DISTINCT team AS prompt, meta->>'lang' AS completion FROM tickets
SELECT DISTINCT ON (team) message AS prompt, team AS completion FROM tickets ORDER BY team, created_at DESC
SELECT DISTINCT ON (lower(message)) message AS prompt, team AS completion FROM tickets
SELECT team AS prompt, round(avg(amount), 2)::VARCHAR AS completion FROM tickets t JOIN orders o ON o.ticket_id = t.id GROUP BY team
SELECT array_to_string(list(message ORDER BY id)[1:3], E'\n') AS prompt, team AS completion FROM tickets GROUP BY team
SELECT message AS prompt, lead(message) OVER (ORDER BY created_at) AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets QUALIFY row_number() OVER (PARTITION BY team ORDER BY created_at DESC) <= 10
SELECT message AS prompt, team AS completion FROM tickets QUALIFY count(*) OVER (PARTITION BY team) > 3
SELECT message AS prompt, rank() OVER w::VARCHAR AS completion FROM tickets WINDOW w AS (PARTITION BY team ORDER BY score)
SELECT message AS prompt, (sum(score) OVER (ORDER BY id ROWS BETWEEN 3 PRECEDING AND CURRENT ROW))::VARCHAR AS completion FROM tickets
SELECT lag(message, 1, 'start') OVER (PARTITION BY who.name ORDER BY id) AS prompt, message AS completion FROM tickets
SELECT message AS prompt, ntile(4) OVER (ORDER BY score)::VARCHAR AS completion FROM tickets
## stars, series
SELECT * EXCLUDE (meta, tags, kind, extra), message AS prompt, team AS completion FROM tickets
SELECT t.* EXCLUDE (message, team), message AS prompt, team AS completion FROM tickets t
SELECT * REPLACE (upper(completion) AS completion) FROM (SELECT message AS prompt, team AS completion FROM tickets)
SELECT * RENAME (text AS prompt, label AS completion) FROM sales.leads
SELECT COLUMNS(lambda c: c IN ('prompt', 'completion')) FROM (SELECT message AS prompt, team AS completion, id FROM tickets)
SELECT COLUMNS('prompt|completion') FROM (SELECT message AS prompt, team AS completion, id FROM tickets)
SELECT lower(COLUMNS(*)) FROM (SELECT message AS prompt, team AS completion FROM tickets)
SELECT t.message AS prompt, (t.id + g.i)::VARCHAR AS completion FROM tickets t, range(3) g(i)
SELECT 'What is ' || i || ' plus ' || j || '?' AS prompt, (i + j)::VARCHAR AS completion FROM generate_series(1, 9) a(i), generate_series(1, 9) b(j)
SELECT message AS prompt, array_to_string(range(id % 4), ',') AS completion FROM tickets
SELECT 'Translate to French: cat' AS prompt, 'chat' AS completion UNION ALL SELECT 'Translate to French: dog', 'chien'
SELECT * FROM (VALUES ('Capital of Peru?', 'Lima'), ('Capital of Japan?', '東京')) v(prompt, completion)
SELECT prompt, completion FROM (SELECT unnest([{'prompt': 'a', 'completion': 'b'}, {'prompt': 'c', 'completion': 'd'}], recursive := true))
SELECT 'label: ' || team AS prompt, message AS completion, score AS weight FROM tickets WHERE score > 0 ORDER BY weight DESC
SELECT coalesce(team, 'all') AS prompt, (count(*) * (1 - grouping(team)))::VARCHAR AS completion FROM tickets GROUP BY CUBE (team)
SELECT message AS prompt, (percentile_cont(0.5) WITHIN GROUP (ORDER BY score))::VARCHAR AS completion FROM tickets GROUP BY message
## columns, aliases and texts that look like something forbidden
SELECT message AS prompt, team AS completion FROM tickets WHERE message <> 'DROP TABLE tickets; -- SELECT * FROM secret'
SELECT 'read_csv(''/etc/passwd'')' AS prompt, team AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets AS secret WHERE secret.id > 3
SELECT secret.text AS prompt, secret.label AS completion FROM sales.leads secret
SELECT message AS prompt, team AS completion, 'copy' AS "select", id AS "from" FROM tickets
""")


def _of(kind: str, block: str) -> list[tuple[str, str]]:
    return [(kind, sql) for sql in _lines(block)]


_FILE = r"""
SELECT content AS prompt, 'x' AS completion FROM read_text('{canary_file}')
SELECT content::VARCHAR AS prompt, filename AS completion FROM read_blob('{canary_file}')
SELECT * FROM read_csv('{canary_file}')
SELECT * FROM read_csv_auto('{canary_file}')
SELECT * FROM read_csv(['{canary_file}'], header = true, columns = {'id': 'INTEGER', 'word': 'VARCHAR'})
SELECT * FROM read_csv('{canary_file}', delim = chr(0), header = false, columns = {'prompt': 'VARCHAR'})
SELECT * FROM read_json('{canary_file}.json', format = 'unstructured', records = false, ignore_errors = true)
SELECT * FROM read_json_auto('{canary_file}.json')
SELECT * FROM read_ndjson('{canary_file}.json')
SELECT * FROM read_ndjson_auto('{canary_file}.json')
SELECT * FROM read_ndjson_objects('{canary_file}.json')
SELECT * FROM read_json_objects('{canary_file}.json')
SELECT * FROM read_json_objects_auto('{canary_file}.json')
SELECT * FROM read_parquet('{canary_file}.parquet')
SELECT * FROM parquet_scan('{canary_file}.parquet')
SELECT * FROM parquet_metadata('{canary_file}.parquet')
SELECT * FROM parquet_schema('{canary_file}.parquet')
SELECT * FROM parquet_file_metadata('{canary_file}.parquet')
SELECT * FROM parquet_kv_metadata('{canary_file}.parquet')
SELECT * FROM parquet_full_metadata('{canary_file}.parquet')
SELECT * FROM parquet_bloom_probe('{canary_file}.parquet', 'id', 1)
SELECT * FROM read_single_csv_file('{canary_file}')
SELECT * FROM read_single_json_file('{canary_file}.json')
SELECT * FROM read_single_parquet_file('{canary_file}.parquet')
SELECT Prompt AS prompt, delimiter AS completion FROM sniff_csv('{canary_file}')
SELECT file AS prompt, 'x' AS completion FROM glob('{canary_file}')
SELECT file AS prompt, 'x' AS completion FROM glob('/etc/*')
SELECT file AS prompt, 'x' AS completion FROM glob('/proc/self/*')
SELECT * FROM '{canary_file}'
SELECT * FROM "{canary_file}"
SELECT word AS prompt, id AS completion FROM '{canary_file}.json'
SELECT word AS prompt, id AS completion FROM '{canary_file}.parquet'
FROM '{canary_file}' SELECT word AS prompt, id AS completion
SELECT t.* FROM tickets t, '{canary_file}' c
SELECT * FROM tickets JOIN '{canary_file}' c ON true
SELECT * FROM tickets WHERE message IN (SELECT word FROM '{canary_file}')
SELECT message AS prompt, (SELECT content FROM read_text('{canary_file}')) AS completion FROM tickets
SELECT message AS prompt, (FROM read_text('{canary_file}') SELECT content) AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets ORDER BY (SELECT content FROM read_text('{canary_file}'))
SELECT message AS prompt, team AS completion FROM tickets LIMIT (SELECT length(content) FROM read_text('{canary_file}'))
SELECT message AS prompt, team AS completion FROM tickets UNION ALL SELECT content, filename FROM read_text('{canary_file}')
WITH f AS (SELECT content FROM read_text('{canary_file}')) SELECT content AS prompt, 'x' AS completion FROM f
WITH f AS MATERIALIZED (FROM '{canary_file}') FROM f
WITH RECURSIVE r AS (SELECT content, 1 AS n FROM read_text('{canary_file}') UNION ALL SELECT content, n + 1 FROM r WHERE n < 2) FROM r
WITH read_text AS (SELECT 1 AS content) SELECT * FROM read_text('{canary_file}')
SELECT * FROM query('SELECT * FROM read_text(''{canary_file}'')')
SELECT * FROM query('FROM ' || '''' || '{canary_file}' || '''')
SELECT * FROM query($$FROM read_text('{canary_file}')$$)
SELECT * FROM query_table('{canary_file}')
SELECT * FROM query_table(['tickets', '{canary_file}'], true)
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{canary_file}'')'))
FROM json_execute_serialized_sql(json_serialize_sql('FROM "{canary_file}"'))
PRAGMA json_execute_serialized_sql('{"error":false,"statements":[]}')
SELECT * FROM read_blob('{database_file}')
SELECT * FROM read_text('{database_file}')
SELECT * FROM read_csv('{database_file}', delim = chr(1), header = false, quote = '', escape = '', all_varchar = true, ignore_errors = true)
SELECT * FROM read_duckdb('{database_file}', table_name = 'secret')
SELECT * FROM '{database_file}'
SELECT * FROM glob('{database_file}*')
SELECT size AS prompt, last_modified AS completion FROM read_blob('{database_file}')
SELECT * FROM read_text('/proc/self/environ')
SELECT * FROM read_blob('/proc/self/maps')
SELECT * FROM read_text('/dev/stdin')
SELECT * FROM read_csv('/dev/fd/0', header = false)
SELECT * FROM read_text('/etc/passwd')
SELECT * FROM read_csv('/etc/passwd', delim = ':', header = false)
SELECT * FROM '/etc/hosts.csv'
SELECT * FROM read_text('~/.bashrc')
SELECT * FROM read_text('../../../../../../etc/passwd')
SELECT * FROM read_text('file:{canary_file}')
SELECT * FROM read_csv('file://{canary_file}')
SELECT * FROM read_text(['{canary_file}', '{database_file}'])
SELECT * FROM read_text(concat('{canary_file}', ''))
SELECT * FROM read_text(E'\x2f' || substr('{canary_file}', 2))
SELECT * FROM read_text($$ {canary_file}$$.trim())
SELECT * FROM Read_Text('{canary_file}')
SELECT * FROM "read_text"('{canary_file}')
SELECT * FROM read_text /* nothing here */ ('{canary_file}')
SELECT * FROM main.read_text('{canary_file}')
SELECT * FROM system.main.read_text('{canary_file}')
SELECT * FROM/**/read_text/**/('{canary_file}')
SELECT * FROM read_text('{canary_file}') AS tickets
SELECT tickets.word AS prompt, tickets.id AS completion FROM '{canary_file}' AS tickets
SELECT * FROM tickets, LATERAL (SELECT content FROM read_text('{canary_file}')) x
SELECT * FROM tickets SEMI JOIN read_text('{canary_file}') f ON true
SELECT * FROM tickets POSITIONAL JOIN read_text('{canary_file}')
SELECT * FROM (SUMMARIZE FROM '{canary_file}')
SELECT * FROM (DESCRIBE FROM read_csv('{canary_file}'))
SELECT * FROM (SHOW FROM '{canary_file}')
SUMMARIZE '{canary_file}'
DESCRIBE SELECT * FROM '{canary_file}'
EXPLAIN ANALYZE SELECT * FROM read_text('{canary_file}')
PIVOT '{canary_file}' ON id USING max(word)
UNPIVOT '{canary_file}' ON word
SELECT * FROM (PIVOT '{canary_file}' ON id USING max(word))
SELECT * FROM '{canary_file}' UNPIVOT (v FOR n IN (word))
SELECT * FROM read_csv(getvariable('path'))
SELECT * FROM read_text((SELECT '{canary_file}'))
SELECT * FROM read_text(list_transform(['{canary_file}'], lambda x: x))
SELECT * FROM read_text($1)
SELECT list_transform([1], lambda x: (SELECT content FROM read_text('{canary_file}'))) AS prompt, 'x' AS completion
SELECT * FROM histogram('{canary_file}', 'word')
SELECT * FROM histogram_values('{canary_file}', word)
VALUES ((SELECT content FROM read_text('{canary_file}')), 'x')
TABLE '{canary_file}'
SELECT word AS prompt, id AS completion FROM '{canary_file}' USING SAMPLE 1 ROWS
"""

_WRITE = r"""
COPY (SELECT 1) TO '{out_file}'
COPY tickets TO '{out_file}' (FORMAT csv)
COPY (SELECT * FROM tickets) TO '{out_file}' (FORMAT parquet)
COPY (FROM secret) TO '{out_file}' (FORMAT json)
COPY tickets FROM '{canary_file}'
COPY secret TO '{out_file}'
COPY FROM DATABASE shop TO other
EXPORT DATABASE '{out_file}'
IMPORT DATABASE '{out_file}'
INSERT INTO tickets (id, message) VALUES (999, 'x')
INSERT INTO orders SELECT * FROM orders
INSERT OR REPLACE INTO secret VALUES (1, 'x')
INSERT INTO secret VALUES (2, 'x') RETURNING word AS prompt, id AS completion
UPDATE tickets SET team = 'x'
UPDATE secret SET word = word RETURNING word AS prompt, id AS completion
DELETE FROM orders
DELETE FROM secret RETURNING word AS prompt, id AS completion
TRUNCATE orders
MERGE INTO tickets USING orders ON tickets.id = orders.ticket_id WHEN MATCHED THEN DELETE
MERGE INTO orders USING (SELECT 1 AS id) s USING (id) WHEN NOT MATCHED THEN INSERT (id) VALUES (77) RETURNING *
WITH d AS (DELETE FROM orders RETURNING *) SELECT status AS prompt, id AS completion FROM d
WITH d AS (DELETE FROM secret RETURNING word) SELECT word AS prompt, 'x' AS completion FROM d
WITH d AS (INSERT INTO orders (id) VALUES (5) RETURNING id) SELECT message AS prompt, team AS completion FROM tickets
WITH d AS (UPDATE tickets SET team = 'x' RETURNING message, team) SELECT message AS prompt, team AS completion FROM d
WITH d AS MATERIALIZED (UPDATE secret SET id = 2 RETURNING word) FROM d
WITH a AS (WITH b AS (DELETE FROM orders RETURNING id) FROM b) FROM a
SELECT * FROM (WITH d AS (DELETE FROM orders RETURNING id) FROM d)
SELECT message AS prompt, (WITH d AS (DELETE FROM orders RETURNING id) SELECT max(id) FROM d) AS completion FROM tickets
WITH d AS (SELECT 1) INSERT INTO orders (id) SELECT * FROM d
WITH d AS (SELECT 1) DELETE FROM orders
CREATE TABLE stolen AS SELECT * FROM secret
CREATE OR REPLACE TABLE tickets AS SELECT 1 AS id
CREATE TABLE IF NOT EXISTS junk (id INTEGER)
CREATE TEMP TABLE junk AS SELECT * FROM tickets
CREATE TEMP TABLE tickets AS SELECT * FROM secret
CREATE VIEW v AS SELECT * FROM secret
CREATE OR REPLACE TEMP VIEW tickets AS SELECT * FROM secret
CREATE TEMP MACRO lower(x) AS (SELECT max(word) FROM secret)
CREATE OR REPLACE TEMP MACRO upper(x) AS peek()
CREATE TEMP MACRO range(x) AS TABLE SELECT * FROM secret
CREATE MACRO shop.main.concat(a, b) AS 'x'
CREATE FUNCTION trim(x) AS 'x'
CREATE TYPE mood AS ENUM ('a', 'b')
CREATE TYPE mood AS ENUM (SELECT word FROM secret)
CREATE SEQUENCE s
CREATE SCHEMA stolen
CREATE INDEX i ON orders (id)
CREATE SECRET s (TYPE http, BEARER_TOKEN 'x')
DROP TABLE tickets
DROP TABLE IF EXISTS secret CASCADE
DROP VIEW leaky
DROP SCHEMA sales CASCADE
DROP MACRO peek
DROP SEQUENCE numbers
ALTER TABLE tickets ADD COLUMN x INTEGER
ALTER TABLE tickets RENAME TO other
ALTER TABLE secret RENAME COLUMN word TO message
ALTER TABLE tickets DROP COLUMN team
ALTER VIEW leaky RENAME TO leaks
COMMENT ON TABLE tickets IS 'x'
SELECT nextval('numbers') AS prompt, 'x' AS completion
SELECT nextval('shop.main.numbers') AS prompt, 'x' AS completion FROM tickets
SELECT message AS prompt, "nextval"('numbers') AS completion FROM tickets
SELECT message AS prompt, 'numbers'.nextval() AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets WHERE nextval('numbers') > 0
SELECT message AS prompt, team AS completion FROM tickets LIMIT (SELECT nextval('numbers'))
SELECT setval('numbers', 100) AS prompt, 'x' AS completion
SELECT setseed(0.5) AS prompt, 'x' AS completion
SELECT write_log('forged', level := 'INFO') AS prompt, 'x' AS completion FROM tickets
SET VARIABLE x = 1
SET VARIABLE x = (SELECT max(word) FROM secret)
RESET VARIABLE x
CHECKPOINT
FORCE CHECKPOINT
CHECKPOINT shop
SELECT * FROM checkpoint()
SELECT * FROM force_checkpoint('shop')
VACUUM
VACUUM ANALYZE tickets
ANALYZE
PREPARE p AS DELETE FROM orders
PREPARE p AS SELECT word FROM secret
EXECUTE p
EXECUTE p(1)
DEALLOCATE p
BEGIN
BEGIN TRANSACTION READ WRITE
COMMIT
ROLLBACK
ABORT
SELECT 1; DELETE FROM orders
SELECT message AS prompt, team AS completion FROM tickets; DROP TABLE tickets
SELECT message AS prompt, team AS completion FROM tickets; SELECT word AS prompt, id AS completion FROM secret
SELECT message AS prompt, team AS completion FROM tickets; COPY secret TO '{out_file}'; SELECT 1 AS prompt, 2 AS completion
SELECT message AS prompt, team AS completion FROM tickets /* ; */ ; /* */ DELETE FROM orders --
;DELETE FROM orders;SELECT message AS prompt, team AS completion FROM tickets
BEGIN; DELETE FROM orders; COMMIT; SELECT message AS prompt, team AS completion FROM tickets
EXPLAIN ANALYZE DELETE FROM orders
EXPLAIN ANALYZE INSERT INTO orders SELECT * FROM orders
EXPLAIN (ANALYZE, FORMAT json) DELETE FROM orders
PRAGMA force_checkpoint
CALL force_checkpoint()
"""

_SETTINGS = r"""
SET memory_limit = '100GB'
SET threads = 64
SET GLOBAL max_memory = '100GB'
SET SESSION max_execution_time = 0
SET max_execution_time = 0
SET lock_configuration = false
SET enable_external_access = true
SET disabled_filesystems = ''
SET allowed_directories = ['/']
SET allowed_paths = ['{canary_file}']
SET search_path = 'hr'
SET schema = 'hr'
SET schema = 'shop.hr'
SET temp_directory = '{out_file}'
SET home_directory = '/root'
SET secret_directory = '{out_file}'
SET extension_directory = '{out_file}'
SET custom_extension_repository = 'http://127.0.0.1:9/'
SET allow_unsigned_extensions = true
SET allow_community_extensions = true
SET autoinstall_known_extensions = true
SET autoload_known_extensions = true
SET python_enable_replacements = true
SET python_scan_all_frames = true
SET TimeZone = 'Asia/Tokyo'
SET default_collation = 'NOCASE'
SET default_null_order = 'nulls_first'
SET preserve_insertion_order = false
SET log_query_path = '{out_file}'
SET enable_logging = true
SET logging_storage = 'file'
SET profiling_output = '{out_file}'
SET profiling_output = '{canary_file}'
SET enable_profiling = 'json'
SET enable_progress_bar = true
SET http_proxy = 'http://127.0.0.1:9'
set"threads"=2
SET threads TO 2
RESET lock_configuration
RESET memory_limit
RESET GLOBAL threads
PRAGMA threads = 64
PRAGMA memory_limit = '100GB'
PRAGMA database_list
PRAGMA show_tables
PRAGMA show_tables_expanded
PRAGMA table_info('secret')
PRAGMA storage_info('secret')
PRAGMA database_size
PRAGMA version
PRAGMA platform
PRAGMA functions
PRAGMA collations
PRAGMA user_agent
PRAGMA metadata_info
PRAGMA enable_verification
PRAGMA disable_optimizer
PRAGMA enable_profiling
PRAGMA disable_checkpoint_on_shutdown
PRAGMA import_database('{out_file}')
PRAGMA copy_database('shop', 'memory')
PRAGMA add_parquet_key('k', '0123456789112345')
CALL enable_logging()
CALL enable_logging(storage = 'file', storage_config = {'path': '{out_file}'})
CALL enable_logging('QueryLog', storage_path = '{out_file}')
CALL disable_logging()
CALL truncate_duckdb_logs()
CALL enable_profiling(save_location = '{out_file}')
CALL disable_profiling()
CALL duckdb_tables()
CALL pragma_table_info('secret')
CALL pragma_version()
CALL query('FROM secret')
SELECT * FROM enable_logging()
SELECT * FROM enable_logging('QueryLog', storage_path = '{out_file}')
SELECT * FROM disable_logging()
SELECT * FROM enable_profiling(save_location = '{out_file}')
SELECT * FROM truncate_duckdb_logs()
SELECT * FROM register_external_resource_type('x', 'y')
LOAD httpfs
LOAD '{out_file}'
LOAD '/tmp/evil.duckdb_extension'
INSTALL httpfs
INSTALL spatial FROM community
INSTALL evil FROM 'http://127.0.0.1:9/'
FORCE INSTALL json
UPDATE EXTENSIONS
UPDATE EXTENSIONS (httpfs)
ATTACH ':memory:' AS other
ATTACH '{database_file}' AS other
ATTACH '{out_file}' AS other
ATTACH IF NOT EXISTS '{database_file}' AS other (READ_ONLY)
ATTACH 'dbname=postgres' AS pg (TYPE postgres)
ATTACH '{canary_file}' AS other (TYPE sqlite)
ATTACH OR REPLACE ':memory:' AS shop
DETACH shop
DETACH DATABASE IF EXISTS other
USE hr
USE shop.hr
USE memory
CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'x')
CREATE OR REPLACE SECRET s (TYPE s3, KEY_ID 'x', SECRET 'y')
DROP SECRET s
SELECT * FROM tickets; SET threads = 8
SELECT 1; USE hr; SELECT message AS prompt, team AS completion FROM tickets
"""

_UNGRANTED = r"""
## by name
SELECT word AS prompt, id AS completion FROM secret
SELECT word AS prompt, id AS completion FROM main.secret
SELECT word AS prompt, id AS completion FROM shop.secret
SELECT word AS prompt, id AS completion FROM shop.main.secret
SELECT word AS prompt, id AS completion FROM SECRET
SELECT word AS prompt, id AS completion FROM Shop.Main.Secret
SELECT word AS prompt, id AS completion FROM "secret"
SELECT word AS prompt, id AS completion FROM "SeCrEt"
SELECT word AS prompt, id AS completion FROM "main"."secret"
SELECT word AS prompt, id AS completion FROM "shop"."main"."secret"
SELECT word AS prompt, id AS completion FROM 'secret'
SELECT word AS prompt, id AS completion FROM `secret`
SELECT `word` AS prompt, `id` AS completion FROM `shop`.`main`.`secret`
SELECT word, id, FROM secret,
SELECT word AS prompt, id AS completion FROM secret
SELECT word AS prompt, id AS completion FROM main/**/./**/secret
SELECT word AS prompt, id AS completion FROM secret -- FROM tickets
SELECT word AS prompt, id AS completion FROM/* tickets */secret
SELECT word AS prompt, id AS completion FROM --⏎secret
SELECT word AS prompt, id AS completion FROM secret AS tickets
SELECT word AS prompt, id AS completion FROM secret AS "shop.main.tickets"
SELECT tickets.prompt, tickets.completion FROM secret tickets(completion, prompt)
FROM secret
FROM secret SELECT word AS prompt, id AS completion
FROM secret AS s SELECT prompt: s.word, completion: s.id
FROM main.secret
TABLE secret
TABLE shop.main.secret
SELECT secret AS prompt, 'x' AS completion FROM secret
SELECT (secret).word AS prompt, 'x' AS completion FROM secret
SELECT COLUMNS(*) FROM secret
SELECT COLUMNS('w.*') AS prompt, 1 AS completion FROM secret
SELECT * EXCLUDE (id), id AS completion FROM secret
SELECT secret.* FROM tickets, secret
SELECT #2 AS prompt, #1 AS completion FROM secret
SELECT word AS prompt, id AS completion FROM secret ORDER BY #1
SELECT min(word) AS prompt, max(word) AS completion FROM secret
SELECT count(*) AS prompt, 'x' AS completion FROM secret
SELECT ascii(word) AS prompt, length(word) AS completion FROM secret
SELECT message AS prompt, note AS completion FROM tickets, hr.salaries
SELECT note AS prompt, amount AS completion FROM hr.salaries
SELECT note AS prompt, amount AS completion FROM shop.hr.salaries
SELECT note AS prompt, amount AS completion FROM "hr".salaries
SELECT message AS prompt, team AS completion FROM hr.tickets
SELECT message AS prompt, team AS completion FROM shop.hr.tickets
SELECT message AS prompt, team AS completion FROM hr.main.tickets
SELECT message AS prompt, team AS completion FROM shop.hr.main.tickets
SELECT message AS prompt, team AS completion FROM "shop"."hr"."main"."tickets" AS tickets
WITH tickets AS (SELECT 1) SELECT message AS prompt, team AS completion FROM shop.hr.main.tickets
SELECT tickets.message AS prompt, tickets.team AS completion FROM HR.Tickets
SELECT message AS prompt, team AS completion FROM tickets JOIN hr.tickets h USING (id, message, team) UNION ALL SELECT message, team FROM hr.tickets
SELECT enum_range(NULL::hr.grade) AS prompt, 'x' AS completion
SELECT enum_first(NULL::shop.hr.grade) AS prompt, 'x' AS completion FROM tickets
SELECT CAST(0 AS hr.grade) AS prompt, 'x' AS completion
SELECT enum_code('b'::hr.grade) AS prompt, 'x' AS completion
## views and macros
SELECT word AS prompt, id AS completion FROM leaky
SELECT word AS prompt, id AS completion FROM shop.main.leaky
FROM Leaky
SELECT peek() AS prompt, 'x' AS completion
SELECT main.peek() AS prompt, 'x' AS completion
SELECT shop.main.peek() AS prompt, 'x' AS completion
SELECT "peek"() AS prompt, 'x' AS completion FROM tickets
SELECT Peek/**/() AS prompt, 'x' AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets ORDER BY peek()
SELECT message AS prompt, list_transform([1], lambda x: peek())[1] AS completion FROM tickets
SELECT * FROM peek_table()
SELECT * FROM main.peek_table()
SELECT * FROM tickets, peek_table()
FROM shop.main.peek_table() SELECT word AS prompt, id AS completion
SELECT unnest([peek()]) AS prompt, 'x' AS completion
## by text
SELECT * FROM query_table('secret')
SELECT * FROM query_table('main.secret')
SELECT * FROM query_table(['secret'])
SELECT * FROM query_table(['tickets', 'secret'], true)
SELECT * FROM query_table('sec' || 'ret')
SELECT * FROM query_table($1)
SELECT * FROM query_table(secret)
SELECT * FROM query('FROM secret')
SELECT * FROM query('SELECT word AS prompt, id AS completion FROM ' || 'secret')
SELECT * FROM query($q$FROM secret$q$)
SELECT * FROM query(chr(70) || 'ROM secret')
SELECT * FROM Query('FROM query(''FROM secret'')')
SELECT * FROM system.main.query('FROM secret')
FROM tickets, LATERAL (FROM query('FROM secret'))
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM secret'))
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT word AS prompt, id AS completion FROM secret')::JSON)
SELECT json_serialize_plan('FROM secret') AS prompt, 'x' AS completion
SELECT * FROM histogram('secret', 'word')
SELECT * FROM histogram(secret, word)
SELECT * FROM histogram_values(secret, word)
SELECT * FROM histogram_values('hr.salaries', note)
SELECT * FROM duckdb_table_sample('secret')
SELECT * FROM summary((FROM secret))
SELECT * FROM repeat_row((SELECT word FROM secret), 'x', num_rows = 2)
SELECT * FROM seq_scan('secret')
SELECT stats(word) AS prompt, id AS completion FROM secret
## shadows
WITH secret AS (SELECT 1) SELECT * FROM main.secret
WITH secret AS (SELECT 1 AS word) SELECT word AS prompt, id AS completion FROM shop.main.secret
WITH secret AS (SELECT 1 AS id) SELECT word AS prompt, id AS completion FROM "main"."secret"
WITH secret AS (SELECT * FROM secret) SELECT word AS prompt, id AS completion FROM secret
WITH a AS (SELECT * FROM secret), secret AS (SELECT 1) SELECT * FROM a
WITH "secret " AS (SELECT 1) SELECT * FROM secret
WITH "ſecret" AS (SELECT 1 AS word) SELECT word AS prompt, id AS completion FROM secret
WITH "leaKy" AS (SELECT 1 AS word) SELECT word AS prompt, id AS completion FROM leaky
WITH "ｓecret" AS (SELECT 1 AS word) SELECT word AS prompt, id AS completion FROM secret
WITH RECURSIVE secret AS (SELECT * FROM secret) SELECT word AS prompt, id AS completion FROM secret
WITH RECURSIVE secret AS (SELECT word FROM secret UNION ALL SELECT 'x' WHERE false) SELECT word AS prompt, 'x' AS completion FROM secret
WITH RECURSIVE secret(id, word) AS (SELECT * FROM secret UNION ALL SELECT * FROM secret WHERE false) SELECT word AS prompt, id AS completion FROM secret
WITH RECURSIVE secret AS (SELECT word FROM (SELECT * FROM secret) UNION SELECT 'x' WHERE false) SELECT word AS prompt, 'x' AS completion FROM secret
WITH RECURSIVE secret AS (SELECT 'x' AS word EXCEPT SELECT word FROM secret) SELECT word AS prompt, 'x' AS completion FROM secret
WITH RECURSIVE secret(k, word) USING KEY (k) AS (SELECT id, word FROM secret UNION SELECT k, word FROM secret WHERE false) SELECT word AS prompt, k AS completion FROM secret
WITH RECURSIVE a AS (SELECT word FROM secret), secret AS (SELECT 1 AS word) SELECT word AS prompt, 'x' AS completion FROM a
WITH secret AS (SELECT 1 AS word) SELECT word AS prompt, id AS completion FROM leaky
WITH s AS (WITH secret AS (SELECT 1 AS word) SELECT word FROM secret) SELECT secret.word AS prompt, 'x' AS completion FROM s, secret
SELECT b.word AS prompt, 'x' AS completion FROM (WITH secret AS (SELECT 1 AS word) FROM secret) a, secret b
(WITH secret AS (SELECT 'x' AS word, 1 AS id) SELECT word AS prompt, id AS completion FROM secret) UNION ALL SELECT word, id FROM secret
SELECT word AS prompt, id AS completion FROM secret UNION ALL (WITH secret AS (SELECT 'x' AS word, 1 AS id) SELECT word, id FROM secret)
SELECT message AS prompt, (WITH secret AS (SELECT 'x' AS word) SELECT max(word) FROM secret) || (SELECT max(word) FROM secret) AS completion FROM tickets
WITH tickets AS (SELECT word AS message, 'x' AS team FROM secret) SELECT message AS prompt, team AS completion FROM tickets
WITH tickets AS (FROM hr.tickets) SELECT message AS prompt, team AS completion FROM tickets
WITH RECURSIVE secret AS (SELECT word, 1 AS n FROM main.secret UNION ALL SELECT word, n + 1 FROM secret WHERE n < 2) SELECT word AS prompt, n AS completion FROM secret
WITH RECURSIVE r AS (SELECT 1 AS n, '' AS w UNION ALL SELECT n + 1, (SELECT max(word) FROM main.secret) FROM r WHERE n < 2) SELECT w AS prompt, n AS completion FROM r
WITH RECURSIVE r(k, w) USING KEY (k) AS (SELECT 1, '' UNION SELECT s.id, s.word FROM r JOIN secret s ON s.word <> r.w) SELECT w AS prompt, k AS completion FROM r
WITH RECURSIVE a AS (SELECT word FROM b), b AS (SELECT word FROM secret) SELECT word AS prompt, 'x' AS completion FROM b
WITH x AS (SELECT 1), y AS (SELECT (SELECT max(word) FROM secret) AS w FROM x) SELECT w AS prompt, 'x' AS completion FROM y
WITH shop AS (SELECT 1), main AS (SELECT 2) SELECT word AS prompt, id AS completion FROM main.secret
WITH unused AS (SELECT word FROM secret) SELECT message AS prompt, team AS completion FROM tickets
WITH v AS (VALUES ((SELECT max(word) FROM secret), 'x')) SELECT col0 AS prompt, col1 AS completion FROM v
## a subquery in every place
SELECT (SELECT max(word) FROM secret) AS prompt, 'x' AS completion
SELECT (FROM secret SELECT max(word)) AS prompt, 'x' AS completion
SELECT message AS prompt, team AS completion FROM tickets WHERE message < (SELECT max(word) FROM secret)
SELECT message AS prompt, team AS completion FROM tickets WHERE EXISTS (SELECT 1 FROM secret WHERE word LIKE 't%')
SELECT message AS prompt, team AS completion FROM tickets WHERE EXISTS (FROM secret)
SELECT message AS prompt, team AS completion FROM tickets WHERE id IN (SELECT id FROM secret)
SELECT message AS prompt, team AS completion FROM tickets WHERE id NOT IN (SELECT length(word) FROM secret)
SELECT message AS prompt, team AS completion FROM tickets WHERE (id, team) IN (SELECT id, word FROM secret)
SELECT message AS prompt, team AS completion FROM tickets WHERE id = ANY (SELECT id FROM secret)
SELECT message AS prompt, team AS completion FROM tickets WHERE id < ALL (SELECT length(word) FROM secret)
SELECT message AS prompt, team AS completion FROM tickets ORDER BY (SELECT max(word) FROM secret)
SELECT message AS prompt, team AS completion FROM tickets LIMIT (SELECT length(max(word)) FROM secret)
SELECT message AS prompt, team AS completion FROM tickets LIMIT 5 OFFSET (SELECT length(max(word)) FROM secret)
SELECT message AS prompt, team AS completion FROM tickets LIMIT (SELECT length(max(word)) FROM secret) %
SELECT CASE WHEN (SELECT max(word) FROM secret) LIKE 't%' THEN 'yes' ELSE 'no' END AS prompt, 'x' AS completion
SELECT CASE (SELECT max(word) FROM secret) WHEN 'a' THEN 1 ELSE 2 END AS prompt, 'x' AS completion FROM tickets
SELECT coalesce(NULL, (SELECT max(word) FROM secret)) AS prompt, 'x' AS completion
SELECT message AS prompt, rank() OVER (ORDER BY (SELECT max(word) FROM secret)) AS completion FROM tickets
SELECT message AS prompt, rank() OVER (PARTITION BY (SELECT max(word) FROM secret) ORDER BY id) AS completion FROM tickets
SELECT message AS prompt, max((SELECT max(word) FROM secret)) OVER w AS completion FROM tickets WINDOW w AS (ORDER BY id)
SELECT message AS prompt, count(*) OVER w AS completion FROM tickets WINDOW w AS (ORDER BY (SELECT max(word) FROM secret))
SELECT message AS prompt, lag(message, 1, (SELECT max(word) FROM secret)) OVER (ORDER BY id) AS completion FROM tickets
SELECT message AS prompt, count(*) FILTER (WHERE message < (SELECT max(word) FROM secret)) OVER () AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets QUALIFY row_number() OVER (ORDER BY id) <= (SELECT length(max(word)) FROM secret)
SELECT team AS prompt, string_agg(message, (SELECT max(word) FROM secret)) AS completion FROM tickets GROUP BY team
SELECT team AS prompt, string_agg(message, ',' ORDER BY (SELECT max(word) FROM secret)) AS completion FROM tickets GROUP BY team
SELECT team AS prompt, count(*) FILTER (WHERE id < (SELECT length(max(word)) FROM secret)) AS completion FROM tickets GROUP BY team
SELECT team AS prompt, count(*) AS completion FROM tickets GROUP BY team HAVING count(*) < (SELECT length(max(word)) FROM secret)
SELECT (SELECT max(word) FROM secret) AS prompt, count(*) AS completion FROM tickets GROUP BY (SELECT max(word) FROM secret)
SELECT count(*) AS prompt, 'x' AS completion FROM tickets GROUP BY GROUPING SETS (((SELECT max(word) FROM secret)), ())
SELECT DISTINCT ON ((SELECT max(word) FROM secret)) message AS prompt, team AS completion FROM tickets
SELECT t.message AS prompt, o.status AS completion FROM tickets t JOIN orders o ON (SELECT max(word) FROM secret) LIKE 't%'
SELECT message AS prompt, s.word AS completion FROM tickets LEFT JOIN secret s ON true
SELECT message AS prompt, word AS completion FROM tickets JOIN secret USING (id)
SELECT message AS prompt, word AS completion FROM tickets NATURAL JOIN secret
SELECT message AS prompt, word AS completion FROM tickets CROSS JOIN secret
SELECT message AS prompt, word AS completion FROM tickets POSITIONAL JOIN secret
SELECT message AS prompt, team AS completion FROM tickets SEMI JOIN secret USING (id)
SELECT message AS prompt, team AS completion FROM tickets ANTI JOIN secret USING (id)
SELECT message AS prompt, word AS completion FROM tickets ASOF JOIN secret ON tickets.id >= secret.id
SELECT message AS prompt, word AS completion FROM tickets, (orders JOIN secret ON true)
SELECT t.message AS prompt, x.word AS completion FROM tickets t, LATERAL (SELECT word FROM secret WHERE secret.id <= t.id) x
SELECT {'a': (SELECT max(word) FROM secret)}::VARCHAR AS prompt, 'x' AS completion
SELECT [(SELECT max(word) FROM secret)]::VARCHAR AS prompt, 'x' AS completion
SELECT MAP {'a': (SELECT max(word) FROM secret)}::VARCHAR AS prompt, 'x' AS completion
SELECT row((SELECT max(word) FROM secret), 1)::VARCHAR AS prompt, 'x' AS completion
SELECT ARRAY(SELECT word FROM secret)::VARCHAR AS prompt, 'x' AS completion
SELECT (SELECT list(secret) FROM secret)::VARCHAR AS prompt, 'x' AS completion
SELECT tags[(SELECT max(id) FROM secret)] AS prompt, 'x' AS completion FROM tickets
SELECT message[(SELECT max(id) FROM secret):] AS prompt, 'x' AS completion FROM tickets
SELECT list_transform(tags, lambda x: x || (SELECT max(word) FROM secret))::VARCHAR AS prompt, 'x' AS completion FROM tickets
SELECT list_filter(tags, lambda x: x < (SELECT max(word) FROM secret))::VARCHAR AS prompt, 'x' AS completion FROM tickets
SELECT [x || (SELECT max(word) FROM secret) for x in tags]::VARCHAR AS prompt, 'x' AS completion FROM tickets
SELECT [x for x in (SELECT list(word) FROM secret) if x IS NOT NULL]::VARCHAR AS prompt, 'x' AS completion
SELECT unnest((SELECT list(word) FROM secret)) AS prompt, 'x' AS completion
SELECT u AS prompt, 'x' AS completion FROM unnest((SELECT list(word) FROM secret)) x(u)
SELECT i AS prompt, 'x' AS completion FROM range((SELECT length(max(word)) FROM secret)) r(i)
SELECT message || (SELECT max(word) FROM secret) AS prompt, team AS completion FROM tickets
SELECT CAST((SELECT max(word) FROM secret) AS VARCHAR) AS prompt, 'x' AS completion
SELECT TRY((SELECT max(word) FROM secret)) AS prompt, 'x' AS completion
SELECT (SELECT max(word) FROM secret) COLLATE NOCASE AS prompt, 'x' AS completion
SELECT (SELECT max(word) FROM secret) BETWEEN 'a' AND 'z' AS prompt, 'x' AS completion FROM tickets
SELECT NOT ((SELECT max(word) FROM secret) IS NULL) AS prompt, 'x' AS completion FROM tickets
SELECT error((SELECT max(word) FROM secret)) AS prompt, 'x' AS completion
SELECT (SELECT max(word) FROM secret)::INTEGER AS prompt, 'x' AS completion
SELECT regexp_extract((SELECT max(word) FROM secret), '.*') AS prompt, 'x' AS completion
SELECT message LIKE (SELECT max(word) FROM secret) ESCAPE '$' AS prompt, 'x' AS completion FROM tickets
SELECT * REPLACE ((SELECT max(word) FROM secret) AS message) FROM tickets
SELECT COLUMNS(lambda c: c = (SELECT min(word) FROM secret)) FROM tickets
SELECT COLUMNS((SELECT list(word) FROM secret)) FROM tickets
VALUES ((SELECT max(word) FROM secret), 'x')
SELECT * FROM (VALUES ((SELECT max(word) FROM secret), 'x')) v(prompt, completion)
SELECT * FROM ((((SELECT word AS prompt, id AS completion FROM secret))))
((SELECT word AS prompt, id AS completion FROM secret))
SELECT message AS prompt, team AS completion FROM tickets UNION ALL SELECT word, id::VARCHAR FROM secret
SELECT message AS prompt, team AS completion FROM tickets UNION ALL BY NAME SELECT word AS prompt FROM secret
SELECT message AS prompt, team AS completion FROM tickets EXCEPT SELECT word, word FROM secret
SELECT message AS prompt, team AS completion FROM tickets INTERSECT SELECT word, word FROM secret
SELECT message AS prompt, team AS completion FROM tickets UNION ALL FROM secret SELECT word, 'x'
SELECT message AS prompt, team AS completion FROM tickets UNION ALL TABLE secret
SELECT message AS prompt, team AS completion FROM tickets UNION ALL VALUES ((SELECT max(word) FROM secret), 'x')
SELECT message AS prompt, team AS completion FROM tickets t WHERE (SELECT count(*) FROM secret s WHERE s.word > t.message) > 0
SELECT message AS prompt, (SELECT word FROM (SELECT word FROM secret WHERE secret.id = t.id)) AS completion FROM tickets t WHERE t.id = 1
SELECT word AS prompt, id AS completion FROM secret TABLESAMPLE 100 PERCENT
SELECT word AS prompt, id AS completion FROM secret USING SAMPLE 1
SELECT word AS prompt, id AS completion FROM secret AT (VERSION => 1)
SELECT message AS prompt, team AS completion FROM tickets AT (TIMESTAMP => (SELECT max(word) FROM secret))
SELECT word AS prompt, id AS completion FROM secret WHERE id = $1
SELECT word AS prompt, id AS completion FROM secret WHERE id = ?
## tables about tables
SELECT table_name AS prompt, sql AS completion FROM duckdb_tables()
SELECT table_name AS prompt, sql AS completion FROM duckdb_tables
SELECT column_name AS prompt, data_type AS completion FROM duckdb_columns()
SELECT view_name AS prompt, sql AS completion FROM duckdb_views()
SELECT database_name AS prompt, path AS completion FROM duckdb_databases()
SELECT schema_name AS prompt, sql AS completion FROM duckdb_schemas()
SELECT name AS prompt, value AS completion FROM duckdb_settings()
SELECT function_name AS prompt, macro_definition AS completion FROM duckdb_functions() WHERE NOT internal
SELECT sequence_name AS prompt, last_value AS completion FROM duckdb_sequences()
SELECT constraint_text AS prompt, table_name AS completion FROM duckdb_constraints()
SELECT index_name AS prompt, sql AS completion FROM duckdb_indexes()
SELECT type_name AS prompt, labels::VARCHAR AS completion FROM duckdb_types()
SELECT name AS prompt, value AS completion FROM duckdb_variables()
SELECT name AS prompt, secret_string AS completion FROM duckdb_secrets()
SELECT * FROM which_secret('s3://x', 's3')
SELECT message AS prompt, type AS completion FROM duckdb_logs()
SELECT * FROM duckdb_logs_parsed('QueryLog')
SELECT * FROM duckdb_log_contexts()
SELECT name AS prompt, statement AS completion FROM duckdb_prepared_statements()
SELECT extension_name AS prompt, install_path AS completion FROM duckdb_extensions()
SELECT path AS prompt, size AS completion FROM duckdb_temporary_files()
SELECT tag AS prompt, memory_usage_bytes AS completion FROM duckdb_memory()
SELECT * FROM duckdb_external_file_cache()
SELECT * FROM duckdb_dependencies()
SELECT * FROM duckdb_connection_count()
SELECT * FROM duckdb_optimizers()
SELECT * FROM duckdb_keywords()
SELECT * FROM duckdb_triggers()
SELECT * FROM duckdb_eviction_queues()
SELECT * FROM pragma_table_info('secret')
SELECT * FROM pragma_table_info('hr.salaries')
SELECT * FROM pragma_storage_info('secret')
SELECT * FROM pragma_show('secret')
SELECT * FROM pragma_database_size()
SELECT * FROM pragma_metadata_info()
SELECT * FROM pragma_version()
SELECT * FROM pragma_platform()
SELECT * FROM pragma_user_agent()
SELECT * FROM pragma_database_list
SELECT table_name AS prompt, table_schema AS completion FROM information_schema.tables
SELECT column_name AS prompt, table_name AS completion FROM information_schema.columns
SELECT * FROM system.information_schema.tables
SELECT * FROM shop.information_schema.schemata
SELECT * FROM "information_schema"."character_sets"
SELECT relname AS prompt, 'x' AS completion FROM pg_catalog.pg_class
SELECT relname AS prompt, 'x' AS completion FROM pg_class
SELECT viewname AS prompt, definition AS completion FROM pg_views
SELECT tablename AS prompt, schemaname AS completion FROM pg_tables
SELECT name AS prompt, setting AS completion FROM pg_settings
SELECT attname AS prompt, 'x' AS completion FROM pg_attribute
SELECT nspname AS prompt, 'x' AS completion FROM pg_namespace
SELECT * FROM pg_catalog.pg_database
SELECT sql AS prompt, name AS completion FROM sqlite_master
SELECT sql AS prompt, name AS completion FROM main.sqlite_master
SELECT sql AS prompt, name AS completion FROM sqlite_schema
SELECT sql AS prompt, name AS completion FROM system.main.sqlite_master
WITH sqlite_master AS (SELECT 1) SELECT * FROM main.sqlite_master
SELECT current_setting('secret_directory') AS prompt, 'x' AS completion
SELECT "current_setting"('home_directory') AS prompt, 'x' AS completion FROM tickets
SELECT 'temp_directory'.current_setting() AS prompt, 'x' AS completion
SELECT getvariable('x') AS prompt, 'x' AS completion
SELECT message AS prompt, coalesce(team, getvariable('x')) AS completion FROM tickets
SELECT currval('numbers') AS prompt, 'x' AS completion
SELECT current_database() AS prompt, current_schema() AS completion
SELECT current_schemas(true)::VARCHAR AS prompt, current_query() AS completion
SELECT current_user AS prompt, session_user AS completion
SELECT current_catalog AS prompt, current_schema AS completion FROM tickets
SELECT user AS prompt, current_role AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets WHERE current_catalog = 'shop'
SELECT current_connection_id() AS prompt, txid_current() AS completion
SELECT version() AS prompt, pg_postmaster_start_time()::VARCHAR AS completion
SELECT in_search_path('shop', 'hr') AS prompt, 'x' AS completion
SELECT pg_get_viewdef(oid) AS prompt, relname AS completion FROM pg_class
SELECT pg_catalog.pg_get_viewdef(1) AS prompt, 'x' AS completion
SELECT obj_description(1, 'x') AS prompt, 'x' AS completion
SELECT has_table_privilege('secret', 'select') AS prompt, 'x' AS completion
SELECT get_block_size('shop') AS prompt, 'x' AS completion
SELECT getenv('HOME') AS prompt, 'x' AS completion
SHOW TABLES
SHOW ALL TABLES
SHOW DATABASES
SHOW TABLES FROM hr
SHOW secret
DESCRIBE secret
DESCRIBE main.secret
DESCRIBE SELECT * FROM secret
SUMMARIZE secret
SUMMARIZE SELECT * FROM secret
EXPLAIN SELECT * FROM secret
EXPLAIN ANALYZE SELECT * FROM secret
SELECT name AS prompt, 'x' AS completion FROM (SHOW TABLES)
SELECT name AS prompt, database AS completion FROM (SHOW ALL TABLES)
SELECT * FROM (SHOW TABLES FROM hr)
SELECT column_name AS prompt, column_type AS completion FROM (DESCRIBE secret)
SELECT column_name AS prompt, max AS completion FROM (SUMMARIZE secret)
SELECT column_name AS prompt, max AS completion FROM (SUMMARIZE SELECT * FROM secret)
WITH s AS (SUMMARIZE secret) SELECT max AS prompt, min AS completion FROM s
PIVOT secret ON id USING max(word)
SELECT * FROM (PIVOT secret ON id USING max(word))
SELECT * FROM secret PIVOT (max(word) FOR id IN (1, 2))
PIVOT (SELECT id, team FROM tickets) ON team IN (SELECT word FROM secret) USING count(*)
UNPIVOT secret ON word
SELECT * FROM secret UNPIVOT (prompt FOR completion IN (word))
SELECT * FROM (UNPIVOT secret ON COLUMNS('w.*'))
SELECT * FROM tickets, (FROM secret UNPIVOT (v FOR n IN (word)))
"""

_NETWORK = r"""
SELECT * FROM read_text('http://127.0.0.1:9/x')
SELECT * FROM read_blob('https://127.0.0.1:9/x')
SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')
SELECT * FROM read_csv('http://127.0.0.1:9/?q=' || (SELECT max(word) FROM secret))
SELECT * FROM read_csv(['http://127.0.0.1:9/a.csv', 'http://127.0.0.1:9/b.csv'])
SELECT * FROM read_parquet('https://example.invalid/x.parquet')
SELECT * FROM read_parquet('s3://bucket/x.parquet')
SELECT * FROM read_parquet('s3://bucket/*.parquet', hive_partitioning = true)
SELECT * FROM read_json('gs://bucket/x.json')
SELECT * FROM read_json('r2://bucket/x.json')
SELECT * FROM read_json('hf://datasets/a/b/x.json')
SELECT * FROM read_csv('azure://c/x.csv')
SELECT * FROM read_text('ftp://127.0.0.1:9/x')
SELECT * FROM 'http://127.0.0.1:9/x.csv'
SELECT * FROM 'https://127.0.0.1:9/x.parquet'
SELECT * FROM 's3://bucket/x.parquet'
SELECT * FROM 'hf://datasets/a/b/x.parquet'
SELECT * FROM "http://127.0.0.1:9/x.json"
FROM 'HTTP://127.0.0.1:9/x.csv'
SELECT message AS prompt, (SELECT content FROM read_text('http://127.0.0.1:9/x')) AS completion FROM tickets
SELECT message AS prompt, team AS completion FROM tickets JOIN 'http://127.0.0.1:9/x.csv' c ON true
SELECT * FROM glob('s3://bucket/*')
SELECT * FROM sniff_csv('http://127.0.0.1:9/x.csv')
SELECT * FROM parquet_metadata('https://127.0.0.1:9/x.parquet')
SELECT * FROM query('FROM ''http://127.0.0.1:9/x.csv''')
SELECT * FROM query_table('http://127.0.0.1:9/x.csv')
SELECT * FROM read_duckdb('http://127.0.0.1:9/x.duckdb', table_name = 't')
COPY tickets TO 'http://127.0.0.1:9/x.csv'
COPY secret TO 's3://bucket/x.parquet'
ATTACH 'http://127.0.0.1:9/x.duckdb' AS remote
ATTACH 's3://bucket/x.duckdb' AS remote (READ_ONLY)
ATTACH 'host=127.0.0.1 port=9' AS pg (TYPE postgres)
INSTALL httpfs; LOAD httpfs; SELECT * FROM read_text('http://127.0.0.1:9/x')
INSTALL 'http://127.0.0.1:9/evil.duckdb_extension'
LOAD 'http://127.0.0.1:9/evil.duckdb_extension'
SELECT * FROM sql_auto_complete('SEL')
SELECT * FROM iceberg_scan('s3://bucket/t')
SELECT * FROM delta_scan('s3://bucket/t')
SELECT * FROM sqlite_scan('{canary_file}', 't')
SELECT * FROM postgres_query('host=127.0.0.1 port=9', 'SELECT 1')
SELECT * FROM st_read('{canary_file}')
"""

_RESOURCES = r"""
## time
SELECT count(*) AS prompt, 'x' AS completion FROM range(1000000000) a, range(1000000000) b
SELECT a.i + b.i AS prompt, 'x' AS completion FROM range(1000000000) a(i), range(1000000000) b(i)
SELECT sum(hash(i)) AS prompt, 'x' AS completion FROM range(1000000000000) r(i)
SELECT count(*) AS prompt, 'x' AS completion FROM tickets a, tickets b, tickets c, tickets d, tickets e, tickets f
SELECT count(*) AS prompt, 'x' AS completion FROM tickets a JOIN tickets b ON a.id <> b.id JOIN tickets c ON c.id <> b.id JOIN tickets d ON c.id <> d.id JOIN tickets e ON e.id <> d.id
SELECT count(*) AS prompt, 'x' AS completion FROM tickets a, tickets b, tickets c, tickets d, tickets e WHERE e.message || a.message || b.message || c.message LIKE '%' || d.message || '%z'
WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT n AS prompt, 'x' AS completion FROM r
WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT max(n) AS prompt, 'x' AS completion FROM r
WITH RECURSIVE r AS (SELECT 1::BIGINT AS n UNION SELECT n * 48271 % 2147483647 FROM r) SELECT count(*) AS prompt, 'x' AS completion FROM r
WITH RECURSIVE r AS (SELECT 'x' AS w UNION ALL SELECT w || w FROM r) SELECT max(length(w)) AS prompt, 'x' AS completion FROM r
WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n FROM r, range(10)) SELECT count(*) AS prompt, 'x' AS completion FROM r
WITH RECURSIVE r(k, v) USING KEY (k) AS (SELECT 1, 1 UNION SELECT k, v + 1 FROM r) SELECT v AS prompt, k AS completion FROM r
SELECT message AS prompt, team AS completion FROM tickets WHERE id < (SELECT count(*) FROM range(100000000000))
SELECT sleep_ms(600000) AS prompt, 'x' AS completion
SELECT pg_sleep(600) AS prompt, 'x' AS completion
SELECT message AS prompt, sleep_ms(60000) AS completion FROM tickets
SELECT list_reduce(range(100000000), lambda a, b: a + b) AS prompt, 'x' AS completion
SELECT reduce(range(100000000), lambda a, b: a + b) AS prompt, 'x' AS completion
SELECT list_transform(range(300000000), lambda x: md5(x::VARCHAR)) AS prompt, 'x' AS completion
SELECT list_sum(list_transform(range(30000), lambda x: list_sum(range(30000 + x)))) AS prompt, 'x' AS completion
SELECT levenshtein(repeat('ab', 100000), repeat('ba', 100000)) AS prompt, 'x' AS completion
SELECT damerau_levenshtein(repeat('ab', 50000), repeat('ba', 50000)) AS prompt, 'x' AS completion
SELECT editdist3(repeat('ab', 100000), repeat('ba', 100000)) AS prompt, 'x' AS completion
SELECT jaro_winkler_similarity(repeat('ab', 500000), repeat('ba', 500000)) AS prompt, 'x' AS completion
SELECT max(levenshtein(a.w, b.w)) AS prompt, 'x' AS completion FROM (SELECT string_agg(message, '') || i AS w FROM tickets, range(200) r(i) GROUP BY i) a, (SELECT string_agg(message, '') || i AS w FROM tickets, range(200) r(i) GROUP BY i) b
SELECT count(*) AS prompt, 'x' AS completion FROM range(1000) r(i) WHERE regexp_matches(repeat('a', 5000000) || i, '(a*)*b')
SELECT regexp_replace(repeat('ab', 10000000) || i, '(a|b|ab)*?c', 'x', 'g') AS prompt, 'x' AS completion FROM range(1000) r(i)
SELECT regexp_extract_all(repeat('a', 30000000), 'a{1,3}?')[1] AS prompt, 'x' AS completion
SELECT count(*) AS prompt, 'x' AS completion FROM tickets, range(100000) r(i) WHERE regexp_matches(repeat(message, 1000) || i, '((.{1,30}){1,30})z')
SELECT count(*) AS prompt, 'x' AS completion FROM tickets a, tickets b, range(10000) WHERE regexp_matches(a.message, '(.?){500}' || b.message || '$')
SELECT count(*) AS prompt, 'x' AS completion FROM tickets, range(10000) r(i) WHERE regexp_matches(repeat(message, 10000) || i, '(.*)(.*)(.*)(.*)(.*)(.*)z$')
SELECT count(*) AS prompt, 'x' AS completion FROM range(100000) r(i) WHERE repeat('a', 5000000) || i LIKE repeat('%a', 3000) || '%b'
SELECT replace(repeat('a', 100000000), 'a', repeat('b', 100)) AS prompt, 'x' AS completion
SELECT factorial(33) * sum(sqrt(i)) AS prompt, 'x' AS completion FROM range(100000000000) r(i)
SELECT quantile_cont(i, [0.1, 0.5, 0.9])::VARCHAR AS prompt, 'x' AS completion FROM range(2000000000) r(i)
SELECT message AS prompt, count(*) OVER (ORDER BY a.i ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE TIES) AS completion FROM tickets, range(100000000) a(i)
SELECT median(i) OVER (ORDER BY i ROWS BETWEEN 50000000 PRECEDING AND 50000000 FOLLOWING) AS prompt, 'x' AS completion FROM range(100000000) r(i)
SELECT i AS prompt, 'x' AS completion FROM generate_series(TIMESTAMP '0001-01-01', TIMESTAMP '9999-12-31', INTERVAL 1 MICROSECOND) r(i)
SELECT i AS prompt, 'x' AS completion FROM range(0, 9223372036854775807, 1) r(i)
SELECT 'x' AS prompt, 'x' AS completion FROM repeat_row(1, 2, num_rows = 9000000000000)
SELECT * FROM repeat('x', 9000000000000)
## memory
SELECT repeat('x', 4000000000) AS prompt, 'x' AS completion
SELECT repeat(message, 100000000) AS prompt, team AS completion FROM tickets
SELECT repeat('x'::BLOB, 4000000000) AS prompt, 'x' AS completion
SELECT repeat([1, 2], 2000000000) AS prompt, 'x' AS completion
SELECT repeat(repeat(repeat('x', 10000), 10000), 40) AS prompt, 'x' AS completion
SELECT 'x'.repeat(2000000000) AS prompt, 'x' AS completion
SELECT lpad('x', 2000000000, 'y') AS prompt, 'x' AS completion
SELECT rpad(message, 2000000000, ' ') AS prompt, team AS completion FROM tickets
SELECT format('{:>2000000000}', 'x') AS prompt, 'x' AS completion
SELECT format('{:2000000000d}', 1) AS prompt, 'x' AS completion
SELECT printf('%2000000000d', 1) AS prompt, 'x' AS completion
SELECT strftime(created_at, repeat('%A', 100000000)) AS prompt, 'x' AS completion FROM tickets
SELECT string_agg(i::VARCHAR) AS prompt, 'x' AS completion FROM range(2000000000) r(i)
SELECT list(i) AS prompt, 'x' AS completion FROM range(2000000000) r(i)
SELECT list(t) AS prompt, 'x' AS completion FROM tickets t, range(1000000000)
SELECT histogram(i) AS prompt, 'x' AS completion FROM range(1000000000) r(i)
SELECT json_group_array(i) AS prompt, 'x' AS completion FROM range(1000000000) r(i)
SELECT range(2000000000) AS prompt, 'x' AS completion
SELECT range(100000000) AS prompt, 'x' AS completion FROM tickets
SELECT generate_series(1, 2000000000) AS prompt, 'x' AS completion
SELECT list_resize([1], 2000000000) AS prompt, 'x' AS completion
SELECT list_resize(['x'], 2000000000, 'y') AS prompt, 'x' AS completion
SELECT flatten(list_transform(range(100000), lambda x: range(100000))) AS prompt, 'x' AS completion
SELECT list_zip(range(300000000), range(300000000)) AS prompt, 'x' AS completion
SELECT list_distinct(range(500000000)) AS prompt, 'x' AS completion
SELECT unnest(range(4000000000)) AS prompt, 'x' AS completion
SELECT array_agg(a.message ORDER BY b.i) AS prompt, 'x' AS completion FROM tickets a, range(1000000000) b(i)
SELECT DISTINCT i AS prompt, md5(i::VARCHAR) AS completion FROM range(1000000000) r(i)
SELECT i AS prompt, 'x' AS completion FROM range(4000000000) r(i) ORDER BY hash(i)
SELECT md5(i::VARCHAR) AS prompt, count(*) AS completion FROM range(4000000000) r(i) GROUP BY 1
SELECT a.i AS prompt, b.i AS completion FROM range(1000000000) a(i) JOIN range(1000000000) b(i) ON hash(a.i) = hash(b.i)
SELECT bitstring('1', 2000000000) AS prompt, 'x' AS completion
SELECT repeat('1', 1000000000)::BIT AS prompt, 'x' AS completion
SELECT repeat('[', 100000000)::JSON AS prompt, 'x' AS completion
SELECT json_extract(repeat('[', 500000000) || repeat(']', 500000000), '$[0]') AS prompt, 'x' AS completion
SELECT ('[' || repeat('1,', 300000000) || '1]')::INTEGER[] AS prompt, 'x' AS completion
SELECT to_base64(repeat('x', 1000000000)::BLOB) AS prompt, 'x' AS completion
SELECT hex(repeat('x', 1000000000)) AS prompt, 'x' AS completion
SELECT url_encode(repeat('/', 800000000)) AS prompt, 'x' AS completion
SELECT string_split(repeat('a,', 500000000), ',') AS prompt, 'x' AS completion
SELECT concat(m, m, m, m, m, m, m, m, m, m) AS prompt, 'x' AS completion FROM (SELECT repeat('x', 400000000) AS m)
SELECT array_to_string(range(1000000000), ',') AS prompt, 'x' AS completion
SELECT list_aggregate(range(500000000), 'string_agg', ',') AS prompt, 'x' AS completion
SELECT translate(repeat('x', 1000000000), 'x', 'é') AS prompt, 'x' AS completion
SELECT message AS prompt, string_agg(message, '') OVER (ORDER BY i) AS completion FROM tickets, range(1000000) r(i)
SELECT map_from_entries(list_transform(range(200000000), lambda x: {'k': x, 'v': x})) AS prompt, 'x' AS completion
SELECT 2 ** 1000000 AS prompt, repeat('9', 100000000)::DOUBLE AS completion FROM range(10000000000)
PIVOT (SELECT i FROM range(1000000) r(i)) ON i USING count(*)
"""


def _large() -> Iterator[str]:
    """Queries whose text itself is the attack, so that they are made and not written."""
    some = "SELECT message AS prompt, team AS completion FROM tickets"
    yield f"{some} WHERE id IN ({', '.join(map(str, range(1_000_000)))})"
    yield f"{some} WHERE id NOT IN ({', '.join(f'(SELECT {i})' for i in range(900))})"
    yield f"{some} WHERE {' OR '.join(f'id = {i}' for i in range(20_000))}"
    yield f"{some} WHERE {' AND '.join(f'message <> {i}::VARCHAR' for i in range(20_000))}"
    yield f"SELECT {'(' * 50_000}1{')' * 50_000} AS prompt, 'x' AS completion"
    yield f"SELECT {'(' * 390}1{')' * 390} AS prompt, 'x' AS completion FROM range(1000000000000)"
    yield f"SELECT {'- ' * 30_000}1 AS prompt, 'x' AS completion"
    yield f"SELECT {'NOT ' * 16_000}true AS prompt, 'x' AS completion"
    yield f"SELECT {'1 + ' * 16_000}1 AS prompt, 'x' AS completion"
    yield f"SELECT 1{'::INTEGER' * 7_000} AS prompt, 'x' AS completion"
    yield f"SELECT {'[' * 30_000}1{']' * 30_000} AS prompt, 'x' AS completion"
    yield f"SELECT {'{a: ' * 10_000}1{'}' * 10_000} AS prompt, 'x' AS completion"
    yield f"SELECT {'CASE WHEN true THEN ' * 3_000}1{' END' * 3_000} AS prompt, 'x' AS completion"
    yield f"SELECT {'upper(' * 8_000}'x'{')' * 8_000} AS prompt, 'x' AS completion"
    yield f"SELECT message{'.trim()' * 9_000} AS prompt, team AS completion FROM tickets"
    yield f"{'SELECT * FROM (' * 4_000}{some}{')' * 4_000}"
    yield " UNION ALL ".join([f"{some}, range(1000000000)"] * 600)
    yield " UNION ".join(["SELECT i AS prompt, i AS completion FROM range(900000000) r(i)"] * 900)
    yield (
        "WITH "
        + ", ".join(
            f"c{i} AS (SELECT a.* FROM {f'c{i - 1} a, c{i - 1} b' if i else 'tickets a'})"
            for i in range(40)
        )
        + " SELECT message AS prompt, team AS completion FROM c39"
    )
    yield (
        "WITH "
        + ", ".join(
            f"c{i} AS NOT MATERIALIZED (SELECT 1 AS n {f'FROM c{i - 1} UNION ALL SELECT 1 FROM c{i - 1}' if i else ''})"
            for i in range(30)
        )
        + " SELECT n AS prompt, n AS completion FROM c29"
    )
    yield "SELECT 1 AS prompt, 2 AS completion FROM " + ", ".join(
        f"tickets t{i}" for i in range(200)
    )
    yield "SELECT 1 AS prompt, 2 AS completion FROM tickets t0 " + " ".join(
        f"JOIN tickets t{i} ON t{i}.id = t{i - 1}.id OR t{i}.id = t0.id" for i in range(1, 60)
    )
    yield f"SELECT {', '.join(f'message AS c{i}' for i in range(40_000))}, message AS prompt, team AS completion FROM tickets"
    yield f"SELECT {', '.join('COLUMNS(*)' for _ in range(2_000))}, message AS prompt, team AS completion FROM tickets"
    yield f"SELECT '{'x' * 10_000_000}' AS prompt, 'x' AS completion FROM range(1000000)"
    yield f"SELECT regexp_matches(message, '{'(a|b|' * 15_000}c{')' * 15_000}') AS prompt, 'x' AS completion FROM tickets, range(1000000)"
    yield f"SELECT count(*) AS prompt, 'x' AS completion FROM tickets GROUP BY CUBE ({', '.join(f'id + {i}' for i in range(15))})"
    yield f"SELECT count(*) AS prompt, 'x' AS completion FROM tickets GROUP BY {', '.join(f'ROLLUP (id + {3 * i}, id + {3 * i + 1}, id + {3 * i + 2})' for i in range(7))}"
    yield f"{some} WHERE id IN {'(SELECT id FROM tickets WHERE id IN ' * 300}(1){')' * 300}"
    yield f"SELECT {' || '.join(['message'] * 5_000)} AS prompt, 'x' AS completion FROM tickets, range(1000000)"
    yield f"SELECT {'list_transform([1], lambda x: ' * 100}1{')' * 100}::VARCHAR AS prompt, 'x' AS completion"
    yield f"SELECT NULL::{'STRUCT(a ' * 3_000}INTEGER{')' * 3_000} AS prompt, 'x' AS completion"
    yield f"SELECT NULL::INTEGER{'[]' * 10_000} AS prompt, 'x' AS completion"


# A run of these has a pandas frame `canary_frame` in the caller's scope and the same frame
# registered as `canary_rows`.
_PYTHON = r"""
SELECT word AS prompt, id AS completion FROM canary_frame
FROM canary_frame
FROM Canary_Frame
SELECT * FROM "canary_frame"
SELECT * FROM tickets, canary_frame
SELECT message AS prompt, (SELECT max(word) FROM canary_frame) AS completion FROM tickets
WITH canary_frame AS (FROM canary_frame) FROM canary_frame
SELECT * FROM query_table('canary_frame')
SELECT * FROM query('FROM canary_frame')
SELECT word AS prompt, id AS completion FROM canary_rows
FROM main.canary_rows
FROM temp.canary_rows
FROM temp.main.canary_rows
SELECT * FROM "Canary_Rows" UNION ALL FROM canary_rows
SELECT * FROM query_table('canary_rows')
SELECT message AS prompt, team AS completion FROM tickets WHERE message IN (SELECT word FROM canary_rows)
SELECT * FROM pandas_scan(140000000000000)
SELECT * FROM arrow_scan(1, 2, 3)
SELECT * FROM arrow_scan_dumb(1::UBIGINT::POINTER, 2, 3)
SELECT * FROM python_arrow_scan(1, 2, 3)
SELECT * FROM python_map_function(1, 2)
SELECT * FROM sys
SELECT * FROM __builtins__
SELECT * FROM self
SELECT * FROM connection
"""

# Spellings that other databases take and DuckDB 2.0's parser refuses today: they stay for the day
# one of them parses.
_UNPARSED = r"""
SELECT word AS prompt, id AS completion FROM U&"secr\0065t"
SELECT * FROM U&'secr\0065t'
SELECT word AS prompt, id AS completion FROM ONLY secret
SELECT word AS prompt, id AS completion FROM [secret]
FROM secret |> SELECT word AS prompt, id AS completion
FROM '{canary_file}'.read_text()
FROM 'secret'.query_table()
SELECT word AS prompt, id AS completion FROM E'secret'
SELECT word AS prompt, id AS completion FROM $$secret$$
SELECT word AS prompt, id AS completion FROM secret FOR UPDATE
SELECT message AS prompt, team AS completion FROM tickets WHERE id = 1 /* /* */ UNION ALL SELECT word, 'x' FROM secret /* */
SELECT word AS prompt, id AS completion FROM secret\0
LOAD DATA INFILE '{canary_file}' INTO TABLE tickets
DO $$ BEGIN DELETE FROM orders; END $$
GRANT SELECT ON secret TO ana
SELECT * FROM query_table(:name)
SELECT * FROM summary(TABLE secret)
SELECT * FROM tickets PIVOT (count(*) FOR team IN (SELECT word FROM secret))
"""
_UNPARSED_WRITE = r"""
ALTER TABLE secret SET SCHEMA sales
WITH d AS (MERGE INTO orders USING (SELECT 1 AS id) s USING (id) WHEN MATCHED THEN DELETE RETURNING id) FROM d
SELECT message AS prompt, team AS completion INTO stolen FROM tickets
"""
_UNPARSED_SETTINGS = r"""
SET LOCAL threads = 4
SET x.y = 1
"""

# What each does on a plain connection of DuckDB 2.0.0 was looked at, one copy of the shop a query.
# None is harmless by intent; those that do nothing today are refused by the binder (a subquery in a
# lambda, in TRY, in AT, in a table function's or a COLUMNS argument, `$1` without a value, DML in
# an inner WITH, pandas_scan and its like by hand, getenv, openrowset, seq_scan, SET of what only a
# start may set), find this fixture empty (duckdb_secrets, _logs, _variables, _indexes,
# _table_sample, which_secret, getvariable, pg_get_viewdef, DETACH IF EXISTS), or tell only the
# session (setseed, BEGIN, COMMIT, DEALLOCATE). In "resources" a text too deep is refused at 1000
# levels by the parser, late.
HOSTILE: list[tuple[str, str]] = [
    *_of("file", _FILE),
    *_of("write", _WRITE),
    *_of("settings", _SETTINGS),
    *_of("ungranted", _UNGRANTED),
    *_of("network", _NETWORK),
    *_of("resources", _RESOURCES),
    *(("resources", sql) for sql in _large()),
    *_of("python", _PYTHON),
    *_of("ungranted", _UNPARSED),
    *_of("write", _UNPARSED_WRITE),
    *_of("settings", _UNPARSED_SETTINGS),
]


_TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$\$.*?\$\$|\w+|::|->>|->|:=|=>|<=|>=|<>|\|\||\s+|.""",
    re.DOTALL,
)
_SEEDS = [*ORDINARY, *(sql for _, sql in HOSTILE if len(sql) < 2000)]
_NAMES = [
    "secret",
    "main.secret",
    "shop.main.secret",
    "hr.salaries",
    "shop.hr.main.tickets",
    "leaky",
    "canary_rows",
    "peek_table()",
    "duckdb_tables()",
    "sqlite_master",
    "query_table('secret')",
    "query('FROM secret')",
    "'{canary_file}'",
    "read_text('{canary_file}')",
]
_VALUES = [
    "(SELECT max(word) FROM secret)",
    "(FROM hr.salaries SELECT max(note))",
    "peek()",
    "(SELECT content FROM read_text('{canary_file}'))",
    "(WITH secret AS (SELECT 'x' AS word) SELECT max(word) FROM main.secret)",
    "current_setting('home_directory')",
    "nextval('numbers')",
]
_WRAPS = [
    "SELECT * FROM ({}) x",
    "WITH secret AS (SELECT 1 AS id, 'x' AS word) {}",
    "WITH tickets AS (FROM secret) {}",
    "WITH q AS ({}) FROM q",
    "WITH RECURSIVE secret AS ({}) FROM secret",
    "{} UNION ALL SELECT word, word FROM secret",
    "({}) INTERSECT (FROM secret)",
    "SELECT ({}) AS prompt",
    "WITH q AS (WITH secret AS (SELECT 1 AS word) {}) SELECT * FROM q, secret",
    "SELECT EXISTS ({}) AS prompt, 'x' AS completion",
    "{}; {}",
    "SELECT word AS prompt, id AS completion FROM secret WHERE (SELECT count(*) FROM ({})) >= 0",
    "FROM (SUMMARIZE {})",
    "EXPLAIN {}",
]


def mutations(seed: int, n: int) -> Iterator[str]:
    """`n` queries made of pieces of the corpus, the same for the same seed; many do not parse, some
    are honest, none may leak."""
    chance = random.Random(seed)
    tokens = [_TOKEN.findall(sql) for sql in _SEEDS]
    for _ in range(n):
        query = list(chance.choice(tokens))
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
            query = _TOKEN.findall(_mutated(query, chance.choice(tokens), chance))
        yield "".join(query)


def _mutated(query: list[str], other: list[str], chance: random.Random) -> str:
    """One change: a token, a bracketed piece or the whole, sometimes with a piece of another
    query."""
    words = [i for i, token in enumerate(query) if token[0].isalnum() or token[0] in "_'\""] or [0]
    tables = [
        i
        for i in words
        if query[i].strip('"').lower() in {"tickets", "orders", "leads", "secret", "salaries"}
    ] or words
    at, pieces = chance.choice(words), _brackets(other) or [other]
    match chance.randrange(11):
        case 0 | 1:
            query[chance.choice(tables)] = chance.choice(_NAMES)
        case 2:
            query[at] = chance.choice(_VALUES)
        case 3:
            query[at] = chance.choice([token for token in other if not token.isspace()])
        case 4:
            query[at] = "".join(chance.choice(pieces))
        case 5:
            mine = chance.choice(_brackets(query) or [query[at : at + 1]])
            return "".join(query).replace("".join(mine), "".join(chance.choice(pieces)), 1)
        case 6:
            query[at] = chance.choice(
                (
                    str.upper,
                    str.title,
                    '"{}"'.format,
                    "`{}`".format,
                    "main.{}".format,
                    "shop.main.{}".format,
                )
            )(query[at])
        case 7:
            query[at] += chance.choice(
                (
                    " /* FROM tickets */ ",
                    " -- x\n",
                    "/**/",
                    "\u00a0",
                    " , ",
                    "; ",
                    " ) ",
                    " ( ",
                    "\0",
                    "::VARCHAR",
                    ".",
                    "()",
                )
            )
        case 8:
            return chance.choice(_WRAPS).replace("{}", "".join(query).rstrip(" ;"))
        case 9:
            return (
                "".join(query).rstrip(" ;")
                + chance.choice((" UNION ALL ", " EXCEPT ", ", ", " ORDER BY ", " LIMIT ", " ; "))
                + "".join(other)
            )
        case _:
            start = chance.randrange(len(query))
            del query[start : start + chance.choice((1, 2, 3, 8))]
    return "".join(query) or "FROM secret"


def _brackets(query: list[str]) -> list[list[str]]:
    """Every bracketed piece of a query, brackets included."""
    pieces, open_at = [], []
    for i, token in enumerate(query):
        if token in "([{":
            open_at.append(i)
        elif token in ")]}" and open_at:
            pieces.append(query[open_at.pop() : i + 1])
    return pieces
