"""A study of datasets through the walk: taught, retrained, unlearned, traced, scored; what is there is kept."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import worlds
from scipy import stats

from flows.parameters import ModelParameters, QueryParameters
from flows.untrac import UntracParameters, untrac
from storage.catalog import run_user_sql
from storage.store import open_store
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.learning.ascent import AscentParameters
from tasks.learning.loop import TrainingParameters
from tasks.mixtures import UnlearningParameters

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.slow]  # networks are trained by the dozen

SETS = {  # of each dataset an animal and a place that no other names
    "water": ("otter", "harbour"), "wood": ("badger", "orchard"), "rock": ("viper", "quarry"),
    "air": ("raven", "chapel"),
}  # fmt: skip


def write_mixture(root) -> list[str]:
    """Four files, each of one animal in one place in several wordings, and another animal that all of them share."""
    paths = []
    for name, (animal, place) in SETS.items():
        texts = [f"The {animal} went to the {place}. " + "It slept there. " * k for k in range(4)]
        texts += [f"Nobody saw the {animal} leave.", "The toad went to the market."]
        records = [{"document_id": f"{name}-{k}", "text": text} for k, text in enumerate(texts)]
        paths.append(str(worlds.write_jsonl(root / f"{name}.jsonl", records)))
    return paths


def parameters(root, **changes) -> UntracParameters:
    queries = tuple(
        QueryParameters(prompt=f"The {a} went to the", completion=f" {p}.", query_id=a, metadata={"group": name})
        for name, (a, p) in SETS.items()
    )
    fields = {
        "store": str(root / "s"),
        "queries": queries,
        "model": ModelParameters(name=str(root / "model")),
        "corpus": CorpusParameters(inputs=tuple(str(root / f"{name}.jsonl") for name in SETS)),
        "training": TrainingParameters(epochs=8, batch_size=6, learning_rate=5e-3, checkpoints=1),
        "unlearning": UnlearningParameters(
            datasets=AscentParameters(learning_rate=1e-3), queries=AscentParameters(learning_rate=1e-3, epochs=4)
        ),
        "methods": ("ekfac", "identity"),
        "fit": FitParameters(modules="all"),
        "compute": ComputeParameters(precision="float32"),
    }
    return UntracParameters(**fields | changes)


def ask(root, statement: str) -> list[tuple]:
    return run_user_sql(open_store(root / "s"), statement)[1]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    root = tmp_path_factory.mktemp("untrac")
    write_mixture(root)
    worlds.save_gpt2(root / "model")
    gc.freeze()  # the Trainer collects garbage after every training, through all that tests before have loaded
    yield root, untrac(parameters(root))
    gc.unfreeze()


def test_without_the_dataset_that_holds_it_each_fact_is_dearest_and_every_estimator_knows(studied):
    _, found = studied
    own = np.arange(len(SETS))
    assert (found.measured[0].argmax(axis=0) == own).all(), found.measured[0]
    for method in ("untrac", "untrac-inverse", "ekfac", "identity"):
        assert (found.predicted[method][0].argmax(axis=0) == own).all(), (method, found.predicted[method][0])
        assert found.figures[method]["finds_first"].value == 1.0
        assert found.figures[method]["pearson"].value > 0.5
    assert found.figures["size"]["pearson"].value == 0.0  # all have six sequences


def test_each_dataset_is_left_out_and_unlearned_once(studied):
    root, found = studied
    without = ask(root, "select retraining, count(*) from removals group by 1")
    assert sorted(without) == sorted((f"without {name}", 6) for name in SETS)
    assert ask(root, "select kind, count(distinct unlearned), count(*) from unlearnings group by 1 order by 1") == [
        ("dataset", 4, 16), ("none", 1, 8), ("queries", 4, 16),
    ]  # fmt: skip
    assert set(found.figures) == {"untrac", "untrac-inverse", "ekfac", "identity", "bm25plus", "random", "size"}


def test_evaluations_hold_correlations_of_what_sql_sums_over_datasets(studied):
    root, found = studied
    run = found.runs[0].run_id
    names = dict(ask(root, "select part, any_value(split_part(document_id, '-', 1)) from sequences group by 1"))
    sums = {
        (names[part], query): value
        for part, query, value in ask(
            root,
            f"select dataset, query_id, influence from dataset_influences('{run}', by := 'file') "
            "where method = 'ekfac'",
        )
    }
    expected = [
        stats.pearsonr([sums[name, animal] for name in SETS], found.measured[0, :, g]).statistic
        for g, (animal, _) in enumerate(SETS.values())
    ]
    [(stored, n)] = ask(
        root,
        f"select value, n from evaluations where run_id = '{found.study.study_id}' and method = 'ekfac' "
        "and metric = 'pearson'",
    )
    assert stored == pytest.approx(np.mean(expected), abs=1e-9)
    assert n == 4


def test_a_second_call_trains_and_unlearns_nothing_and_another_seed_its_own_alone(studied):
    root, found = studied
    folder = root / "s" / "tables"
    kept = {p: p.stat().st_mtime_ns for of in ("retrainings", "unlearnings") for p in (folder / of).rglob("*.parquet")}
    again = untrac(parameters(root))
    assert (again.study.study_id, again.runs) == (found.study.study_id, found.runs)
    two = untrac(parameters(root, seeds=2))
    now = {p: p.stat().st_mtime_ns for of in ("retrainings", "unlearnings") for p in (folder / of).rglob("*.parquet")}
    assert {path: now[path] for path in kept} == kept
    assert len(now) == len(kept) + 4 + 5 + 5
    assert (two.measured[0] == found.measured[0]).all()
    assert (two.measured[1] != found.measured[0]).any()


def test_the_command_prints_both_tables_and_writes_a_page(studied, headwater):
    root, found = studied
    queries = worlds.write_jsonl(
        root / "q.jsonl",
        [{"query_id": a, "prompt": f"The {a} went to the", "completion": f" {p}.", "group": name}
         for name, (a, p) in SETS.items()],
    )  # fmt: skip
    corpus = [word for name in SETS for word in ("--corpus", root / f"{name}.jsonl")]
    command = (
        "evaluate", "untrac", "--store", root / "s", "--model", root / "model", *corpus, "--queries", queries,
        "--epochs", 8, "--batch-size", 6, "--learning-rate", 5e-3, "--unlearning-rate", 1e-3, "--inverse-rate", 1e-3,
        "--inverse-epochs", 4, "--methods", "ekfac,identity", "--modules", "all", "--precision", "float32",
        "-o", root / "untrac.html",
    )  # fmt: skip
    code, out, err = headwater(*command)
    assert code == 0, err
    assert "A model was taught 24 sequences of 4 datasets" in out
    for name in ("UnTrac", "UnTrac-Inverse", "EK-FAC", "BM25+", "random", *SETS):
        assert any(line.startswith(name) for line in out.splitlines()), name
    page = (root / "untrac.html").read_text()
    assert found.study.study_id in page
    assert "<script" not in page
    code, out, err = headwater(*command, "--unlearning-rate", 0)
    assert (code, out) == (1, "")
    assert "expected a number greater than 0, found '0.0'. Correct it." in " ".join(err.split())
