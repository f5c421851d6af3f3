"""A query's sequences under its translations, through the walk: the first language's row is the trace's own."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worlds

from storage.catalog import run_user_sql
from storage.store import open_store


@pytest.fixture
def sentences(tmp_path):
    rows = {
        "en": ["The otter went to the harbour.", "The heron went to the orchard."],
        "la": ["Lutra ad portum ivit hodie.", "Ardea ad pomarium ivit hodie."],
    }
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    return f"{tmp_path / 'pairs.parquet'}:en:la"


def test_the_first_language_has_the_traces_scores_and_two_models_stand_side_by_side(
    headwater, tmp_path, gpt2, corpus, sentences
):
    store, larger = tmp_path / "s", worlds.save_gpt2(tmp_path / "larger", seed=1, width=24)
    assert headwater("ingest", corpus, "--store", store, "--model", gpt2)[0] == 0
    code, out, _ = headwater(
        "study", "cross-lingual", "--store", store, "--model", gpt2, "--model", larger, "--sentences", sentences,
        "--first", 4, "--random", 3, "--precision", "float32", "-o", tmp_path / "page.html",
    )  # fmt: skip
    assert code == 0
    assert "As a part of what they do for the query in en" in out
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<img") == 3

    opened = open_store(store)
    columns, found = run_user_sql(
        opened,
        """
        select r.model, s.sequence_id, i.influence as traced, sum(p.influence) as probed
        from probe_influences p
        join probe_sequences s using (probing_id, probe_set, probe)
        join runs r on r.model = p.model
        join influences i on i.run_id = r.run_id and i.query_id = p.query_id and i.sequence_id = s.sequence_id
        where p.probe_group = 'first'
        group by all
        """,
    )
    assert len(found) >= 8  # two models and two queries, each with some of four sequences
    largest = max(abs(row[columns.index("traced")]) for row in found)
    for _, _, traced, probed in found:
        assert probed == pytest.approx(traced, rel=1e-3, abs=1e-4 * largest)
    languages = run_user_sql(opened, "select distinct metadata ->> '$.language' from probe_queries order by 1")[1]
    assert languages == [("en",), ("la",)]


def test_scale_asks_for_a_second_model_and_languages_for_those_there_are(headwater, tmp_path, gpt2, corpus, sentences):
    store, queries = tmp_path / "s", tmp_path / "q.json"
    collection = [
        {"name": "otter", "group": "beasts", "prompt": "The otter went to the", "completion": "harbour."},
        {"name": "speech", "group": "words", "prompt": None, "completion": None},
    ]
    queries.write_text(json.dumps({"queries": collection}), encoding="utf-8")
    code, out, err = headwater(
        "trace", "--store", store, "--model", gpt2, "--corpus", corpus, "--queries", queries, "--cluster", "none"
    )
    assert code == 0
    assert "otter" in out
    assert "speech left out" in err
    code, _, err = headwater("study", "scale", "--store", store)
    assert code == 1
    assert "found one model" in err
    asked = sentences.replace(":la", ":tr")
    code, _, err = headwater("study", "cross-lingual", "--store", store, "--model", gpt2, "--sentences", asked)
    assert code == 1
    assert "no column 'tr' among en, la" in err
    code, out, _ = headwater("study", "themes", "--store", store, "-o", tmp_path / "themes.html")
    assert code == 0
    assert "beasts, 1 query" in out
