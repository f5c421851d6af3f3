from __future__ import annotations

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import worlds

from storage.errors import InputError, StoreError
from storage.prefilter import matching_ids, parse_where
from storage.store import create_store
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers

PARTS = ("p00000", "p00001")
YEARS = ["1984", "1996", "unknown", None]


def records() -> list[dict]:
    """The fables with a kind and a year that some lack; every third is a fact, every fifth is long and cut in many."""
    found = worlds.documents(40)
    for k, record in enumerate(found):
        record["source"] = ["fable", "news", "it's"][k % 3]
        record["kind"] = "fact" if k % 3 == 0 else "story"
        record["text"] *= 6 if k % 5 == 0 else 1
        if YEARS[k % 4] is not None:
            record["year"] = YEARS[k % 4]
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory, gpt2):
    folder = tmp_path_factory.mktemp("prefilter")
    files = [worlds.write_jsonl(folder / f"{k}.jsonl", records()[20 * k : 20 * k + 20]) for k in range(2)]
    store = create_store(folder / "store")
    ingest.fn(store, gpt2, CorpusParameters(inputs=tuple(map(str, files))), Workers())
    return store


def by_hand(store, part, keep) -> list[int]:
    """Ids of the sequences that `keep(document, sequence)` keeps, with documents as they were handed in."""
    documents = {record["document_id"]: record for record in records()}
    sequences = pq.read_table(store.file("sequences", part), partitioning=None).to_pylist()
    return [s["sequence_id"] for s in sequences if keep(documents[s["document_id"]], s)]


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("source = 'fable'", lambda d, s: d["source"] == "fable"),
        ("source = 'news' and n_tokens > 30", lambda d, s: d["source"] == "news" and s["n_tokens"] > 30),
        ("SOURCE in ('fable', 'it''s')", lambda d, s: d["source"] in {"fable", "it's"}),
        ("metadata->>'kind' = 'fact'", lambda d, s: d["kind"] == "fact"),
        ("metadata->>'$.colour' = 'red' or start_char > 0", lambda d, s: d["colour"] == "red" or s["start_char"] > 0),
        ("metadata->>'year' > '1990'", lambda d, s: d.get("year", "") > "1990"),
        ("not (metadata->>'year' > '1990')", lambda d, s: "year" in d and d["year"] <= "1990"),
        ("metadata->>'year' is null", lambda d, s: "year" not in d),
        ("try_cast(metadata->>'year' as integer) < 1990", lambda d, s: d.get("year") == "1984"),
        ("try((metadata->>'year')::integer) < 1990", lambda d, s: d.get("year") == "1984"),
        ("text like '%otter%'", lambda d, s: "otter" in d["text"]),
        ("regexp_matches(lower(text), 'the (heron|toad) ')", lambda d, s: any(f"The {a} " in d["text"] for a in ("heron", "toad"))),  # noqa: E501
        ("n_tokens between 10 and 40", lambda d, s: 10 <= s["n_tokens"] <= 40),
        ("end_char - start_char >= 2 * n_tokens", lambda d, s: s["end_char"] - s["start_char"] >= 2 * s["n_tokens"]),
        ("len(token_ids) = n_tokens and part = 'p00001'", lambda d, s: s["part"] == "p00001"),
        ("list_contains(token_ids, 72)", lambda d, s: 72 in s["token_ids"]),
        ("token_ids[1] % 2 = 0", lambda d, s: s["token_ids"][0] % 2 == 0),
        ("case when n_tokens > 30 then source = 'news' else true end", lambda d, s: s["n_tokens"] <= 30 or d["source"] == "news"),  # noqa: E501
        ("document_id < 'd010' and sequence_id % 2 = 1", lambda d, s: d["document_id"] < "d010" and s["sequence_id"] % 2),  # noqa: E501
        ("nullif(source, 'news') is null", lambda d, s: d["source"] == "news"),
        ("true", lambda d, s: True),
        ("false", lambda d, s: False),
        ("null = 1", lambda d, s: False),
        ("source = 'fable' -- only fables", lambda d, s: d["source"] == "fable"),
        ("source = /* ) or (true */ 'fable'", lambda d, s: d["source"] == "fable"),
        ("source = '--' or source = ') or (true'", lambda d, s: False),
    ],
)  # fmt: skip
def test_it_keeps_what_a_filter_written_by_hand_keeps(store, where, keep):
    for part in PARTS:
        found = matching_ids(store, part, where)
        assert found.dtype == np.int64
        assert found.tolist() == by_hand(store, part, keep), (part, where)


def test_a_sequence_is_judged_by_its_own_tokens_and_its_documents_text(store):
    whole = {i for part in PARTS for i in matching_ids(store, part, "text like 'The otter%'").tolist()}
    first = {i for part in PARTS for i in matching_ids(store, part, "text like 'The otter%' and start_char = 0")}
    assert first < whole


def test_surrounding_space_is_no_part_of_an_expression():
    assert parse_where("\n source = 'x'  ") == "source = 'x'"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        # no expression, or more than one
        ("", "nothing"),
        (" \n ", "nothing"),
        ("-- only a comment", "exactly one"),
        ("source =", "exactly one"),
        ("select true", "exactly one"),
        ("true, false", "exactly one"),
        ("true; select 1", "exactly one"),
        ("true;", "exactly one"),
        ("true); drop view documents; --", "exactly one"),
        ("1=1) or exists(select 1 from documents", "exactly one"),
        ("true) or (true", "exactly one"),
        ("true) union select 1 from sequences where (true", "exactly one"),
        ("true union select 1", "exactly one"),
        ("true) group by (source", "exactly one"),
        ("true group by all", "exactly one"),
        ("true limit 1", "exactly one"),
        ("true order by 1", "exactly one"),
        ("true as x", "exactly one"),
        ("x: true", "exactly one"),
        # comments that swallow what comes after
        ("true) --", "exactly one"),
        ("true) -- \n or (true", "exactly one"),
        ("true /*", "exactly one"),
        ("true) /* ", "exactly one"),
        ("*/ true /*", "exactly one"),
        # quotes and odd characters
        ("source = 'x", "exactly one"),
        ('source = "x"', "'x'"),
        ("source = $$x", "exactly one"),
        ("ｓｏｕｒｃｅ = 'x'", "columns among"),
        ("töken_ids is null", "columns among"),
        ("to\u212aen_ids is null", "not found"),  # the Kelvin sign, which lower() makes a k
        ("true\x00", "columns among"),
        ("source = '\ud800'", "exactly one"),
        # too much
        ("n_tokens > 1 and " * 10_000 + "true", "characters"),
        ("not " * 900 + "true", "exactly one"),
        ("(" * 20_000 + "true" + ")" * 20_000, "exactly one"),
        # other rows and other relations
        ("(select true)", "a subquery"),
        ("exists(select 1)", "a subquery"),
        ("exists(from read_text('/etc/passwd'))", "a subquery"),
        ("n_tokens in (select 1)", "a subquery"),
        ("source = any(['x'])", "a subquery"),
        ("source in (values ('x'))", "a subquery"),
        ("count(*) > 1", "count"),
        ("sum(n_tokens) > 1", "sum"),
        ("row_number() over () = 1", "a window"),
        ("sum(n_tokens) over () = 1", "a window"),
        ("*", "a star"),
        ("columns('.*') is null", "a star"),
        ("#1", "a column by position"),
        ("unnest(token_ids) = 1", "unnest"),
        ("list_filter(token_ids, lambda x: x > 3) is not null", "lambda"),
        ("[x for x in token_ids] is not null", "lambda"),
        ("(metadata->'kind') is null", "Reach into JSON with metadata->>"),
        # parameters
        ("source = $1", "a parameter"),
        ("source = ?", "a parameter"),
        ("source = $name", "a parameter"),
        # columns that there are not
        ("colour = 'red'", "document_id, text, source, metadata, sequence_id, part, start_char"),
        ("documents.source = 'x'", "documents.source"),
        ("metadata.kind = 'fact'", "metadata->>'key'"),
        ("rowid = 1", "rowid"),
        ("current_date > date '2020-01-01'", "current_date"),
        ("current_user = 'root'", "current_user"),
        # functions that read something else, or never say the same
        ("getenv('HOME') = ''", "getenv"),
        ("read_text('/etc/passwd') is not null", "read_text"),
        ("read_blob('/etc/passwd') is not null", "read_blob"),
        ("glob('/*') is not null", "glob"),
        ("nextval('s') = 1", "nextval"),
        ("current_setting('memory_limit') = ''", "current_setting"),
        ("getvariable('x') = 1", "getvariable"),
        ("current_database() = ''", "current_database"),
        ("version() = ''", "version"),
        ("random() < .5", "random"),
        ("uuid() is not null", "uuid"),
        ("gen_random_uuid() is not null", "gen_random_uuid"),
        ("now() is not null", "now"),
        ("today() is not null", "today"),
        ("age(timestamp '2020-01-01') is not null", "reads the clock"),
        ("current_localtimestamp() is not null", "reads the clock"),
        ("setseed(.5) is null", "setseed"),
        ("sleep_ms(100) is null", "sleep_ms"),
        ("write_log('x') is null", "write_log"),
        ("error('x')", "error"),
        ("json_serialize_plan('from documents') is null", "reads SQL"),
        ("list_aggregate(token_ids, 'reservoir_quantile', .5) = 1", "calls an aggregate by its name"),
        ("finalize(text) is null", "machinery"),
        ("__internal_decompress_string(1) = ''", "__internal"),
        ("main.lower(text) = ''", "not called as name"),
        ("text.lower() = ''", "not called as name"),
        ("lower(distinct text) = ''", "not called as name"),
        ("lowr(text) = ''", "unknown"),
        # what is not true or false, or cannot be
        ("n_tokens", "INTEGER"),
        ("source", "VARCHAR"),
        ("metadata", "JSON"),
        ("null", "true or false"),
        ("(true, false)", "true or false"),
        ("n_tokens + source > 1", "No function matches"),
        ("regexp_matches(text, '(')", "missing )"),
        ("metadata->>'$[' = 'x'", "JSON path"),
        ("cast(text as no_such_type) is null", "no_such_type"),
    ],
)  # fmt: skip
def test_it_refuses_with_a_reason(where, reason):
    with pytest.raises(InputError) as refusal:
        parse_where(where)
    assert reason in str(refusal.value)
    assert len(str(refusal.value)) < 800  # a long expression is not said in full


@pytest.mark.parametrize(
    "where",
    [
        "cast(metadata->>'year' as integer) > 1990",
        "json_extract(metadata, '$[' || source) is null",
        "date_trunc(source, timestamp '2020-01-01') is null",
    ],
)
def test_an_expression_that_fails_on_a_row_is_the_users_error(store, where):
    parse_where(where)
    with pytest.raises(InputError, match="try_cast"):
        matching_ids(store, "p00000", where)


def test_an_unreadable_part_is_the_stores_error(store, tmp_path, gpt2):
    with pytest.raises(StoreError, match="part p00009"):
        matching_ids(store, "p00009", "true")
    file = worlds.write_jsonl(tmp_path / "one.jsonl", records()[:3])
    damaged = create_store(tmp_path / "damaged")
    ingest.fn(damaged, gpt2, CorpusParameters(inputs=(str(file),)), Workers())
    damaged.file("documents", "p00000").write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreError, match="part p00000"):
        matching_ids(damaged, "p00000", "true")


def test_the_connection_is_locked_even_for_what_the_check_would_let_pass(store, tmp_path, monkeypatch):
    monkeypatch.setattr("storage.prefilter.parse_where", lambda text: text)
    (tmp_path / "secret.txt").write_text("secret")
    other = store.file("documents", "p00001")
    for relation in (f"read_text('{tmp_path / 'secret.txt'}')", f"read_parquet('{other}')", f"glob('{tmp_path}/*')"):
        expression = f"exists(select 1 from {relation})"
        assert duckdb.sql(f"select {expression}").fetchall() == [(True,)]  # elsewhere it reads
        with pytest.raises((InputError, duckdb.Error), match="disabled"):
            matching_ids(store, "p00000", expression)
    with pytest.raises(duckdb.Error):
        matching_ids(store, "p00000", "true; set enable_external_access = true")
