"""A datamodelling study through the walk: retrainings, trace, scores; what is there is kept, what is wrong is named."""

from __future__ import annotations

import gc
import json

import pytest
import worlds

from flows.lds import LdsParameters, lds
from flows.parameters import ModelParameters, QueryParameters
from storage.catalog import run_user_sql
from storage.store import open_store
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.learning.loop import TrainingParameters
from tasks.subsets import SubsetParameters

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.slow]  # networks are trained by the dozen

QUERIES = (("The otter went to the", " harbour.", "otter"), ("Nobody saw the viper", " leave.", "viper"))


def parameters(root, **changes) -> LdsParameters:
    return LdsParameters(
        store=str(root / "s"),
        queries=tuple(QueryParameters(prompt=p, completion=c, query_id=q) for p, c, q in QUERIES),
        model=ModelParameters(name=str(root / "model")),
        corpus=CorpusParameters(inputs=(str(root / "corpus.jsonl"),)),
        training=TrainingParameters(epochs=2, batch_size=6, learning_rate=5e-3, checkpoints=1),
        methods=("ekfac", "identity"),
        fit=FitParameters(modules=r"transformer\.h\.1\.mlp\.c_proj"),
        compute=ComputeParameters(precision="float32"),
        **{"subsets": SubsetParameters(subsets=10, seeds=1, queries=0)} | changes,
    )


def ask(root, statement: str) -> list[tuple]:
    return run_user_sql(open_store(root / "s"), statement)[1]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    root = tmp_path_factory.mktemp("lds")
    worlds.write_jsonl(root / "corpus.jsonl", worlds.documents(24))
    worlds.save_gpt2(root / "model", width=8)
    gc.freeze()  # the Trainer collects garbage after every training, through all that tests before have loaded
    yield root, lds(parameters(root))
    gc.unfreeze()


def test_each_subset_is_half_of_the_corpus_and_is_trained_once(studied):
    root, study = studied
    rows = ask(root, "select retraining, count(*), count(distinct sequence_id) from removals group by 1")
    assert sorted(rows) == sorted((f"subset {k}", 12, 12) for k in range(10))
    kinds = ask(
        root, "select kind, count(distinct (retraining, seed)), count(*) from retrainings group by 1 order by 1"
    )
    assert kinds == [("full", 2, 4), ("subset", 10, 20)]
    assert (study.n_retrainings, study.n_sequences, study.n_left_out) == (12, 24, 12)


def test_the_model_retrained_on_everything_is_the_one_that_was_traced(studied):
    _, study = studied
    assert study.spread.difference < 1e-4
    assert study.spread.over_subsets > 1e-3  # so the tenths of a milli-nat above are no coincidence


def test_bm25_and_random_stand_in_every_table(studied):
    root, study = studied
    assert set(study.figures) == {"ekfac", "identity", "bm25plus", "random"}
    assert ask(root, "select count(distinct sequence_id) from influences where method = 'bm25plus'") == [(24,)]


def test_evaluations_hold_what_sql_makes_of_the_stored_tables(studied):
    root, study = studied
    statement = f"select method, avg(lds) from datamodelling_scores('{study.study_id}', '{study.run_id}') group by 1"
    stored = f"select method, value from evaluations where run_id = '{study.run_id}' and metric = 'lds'"
    assert dict(ask(root, statement)) == pytest.approx(dict(ask(root, stored)), abs=1e-6)


def test_a_second_call_trains_nothing_and_more_subsets_train_those_alone(studied):
    root, study = studied
    kept = {p: p.stat().st_mtime_ns for p in (root / "s" / "tables" / "retrainings").rglob("*.parquet")}
    again = lds(parameters(root, subsets=SubsetParameters(subsets=11, seeds=1, queries=0)))
    now = {p: p.stat().st_mtime_ns for p in (root / "s" / "tables" / "retrainings").rglob("*.parquet")}
    assert {path: now[path] for path in kept} == kept
    assert len(now) == len(kept) + 1
    assert (again.study_id, again.run_id) == (study.study_id, study.run_id)


def write_queries(path, *queries):
    records = [{"prompt": p, "completion": c, "query_id": q} for p, c, q in queries]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def command(root, queries, *more):
    return (
        "evaluate", "lds", "--store", root / "s", "--model", root / "model", "--corpus", root / "corpus.jsonl",
        "--queries", queries, "--epochs", 2, "--batch-size", 6, "--learning-rate", 5e-3, "--save", 1, "--subsets", 10,
        "--seeds", 1, "--methods", "ekfac,identity", "--modules", r"transformer\.h\.1\.mlp\.c_proj",
        "--precision", "float32", "-o", root / "lds.html", *more,
    )  # fmt: skip


def test_the_command_prints_the_table_with_intervals_and_writes_a_page(studied, headwater):
    root, study = studied
    queries = write_queries(root / "q.jsonl", *QUERIES)
    code, out, err = headwater(*command(root, queries, "--removals", 0, "--dampings", "10"))
    assert code == 0, err
    assert "models were taught random 12 of the 24 training sequences" in out
    for name in ("EK-FAC", "gradient dot", "BM25+", "random"):
        assert any(line.startswith(name) and "[" in line for line in out.splitlines()), name
    assert "LDS by damping" in out
    [(swept,)] = ask(root, "select count(*) from evaluations where method = 'ekfac[damping 10]' and metric = 'lds'")
    assert swept == 1
    [(fits,)] = ask(root, "select count(distinct factors_id) from runs")
    assert fits == 2  # two dampings
    assert len(list((root / "s" / "factors").glob("*/manifest.json"))) == 1  # of one fit
    page = (root / "lds.html").read_text()
    assert study.study_id in page
    assert "<script" not in page


def test_what_cannot_be_studied_is_refused_before_anything_is_trained(studied, headwater, tmp_path):
    root, _ = studied
    before = len(list((root / "s" / "tables" / "retrainings").rglob("*.parquet")))
    queries = write_queries(tmp_path / "q.jsonl", *QUERIES)
    long = write_queries(tmp_path / "long.jsonl", ("The otter " * 60, " leaves.", "endless"))
    for said, arguments in {
        "at most 23, found 24 sequences in the corpus": command(root, queries, "--size", 24),
        "at least 10 retrainings, of which an interval can be made, found 5": command(root, queries, "--subsets", 5),
        "query endless: expected at most 48 tokens": command(root, long),
    }.items():
        code, out, err = headwater(*arguments)
        assert (code, out) == (1, "")
        assert said in " ".join(err.split())
    assert len(list((root / "s" / "tables" / "retrainings").rglob("*.parquet"))) == before


def test_a_corpus_of_one_sequence_is_refused(studied, headwater, tmp_path):
    root, _ = studied
    worlds.write_jsonl(tmp_path / "corpus.jsonl", worlds.documents(1))
    code, _, err = headwater(
        "evaluate", "lds", "--store", tmp_path / "s", "--model", root / "model", "--corpus", tmp_path / "corpus.jsonl",
        "--queries", write_queries(tmp_path / "q.jsonl", *QUERIES), "--subsets", 10,
    )  # fmt: skip
    assert code == 1
    assert "at least two training sequences, of which a subset can lack one, found 1." in " ".join(err.split())
