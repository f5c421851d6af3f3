"""Methods that solve for the query's gradient: through the walk, beside EK-FAC, layers and tokens included."""

from __future__ import annotations

import numpy as np
import pytest
import worlds

from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.store import open_store
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.factors import FitParameters
from tasks.influence.errors import InfluenceError
from tasks.methods import MethodParameters, SolverParameters
from tasks.metrics import Damping

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.slow]  # nine solvers, over the whole walk

ONE = r"transformer\.h\.1\.mlp\.c_proj"
SOLVER = SolverParameters(sequences=24, iterations=60, tolerance=1e-5, depth=300, batch=24, eigenpairs=40, steps=80)


def parameters(store, model, corpus, method: MethodParameters) -> TraceParameters:
    return TraceParameters(
        store=str(store),
        model=ModelParameters(name=str(model)),
        queries=(
            QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),
            QueryParameters(prompt="Nobody saw the viper", completion=" leave.", query_id="viper"),
        ),
        corpus=CorpusParameters(inputs=(str(corpus),)),
        candidates=CandidateParameters(filters=("none",)),
        fit=FitParameters(modules=ONE),
        method=method,
        compute=ComputeParameters(precision="float32"),
        cluster="none",
    )


def ask(store, statement: str) -> list[tuple]:
    return run_user_sql(open_store(store), statement)[1]


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """One run of conjugate gradients with every other solver beside it."""
    root = tmp_path_factory.mktemp("solved")
    corpus = worlds.write_jsonl(root / "corpus.jsonl", worlds.documents(24))
    model = worlds.save_gpt2(root / "model", width=8)
    beside = ("exact", "lissa", "arnoldi", "datainf", "diagonal", "ekfac", "kfac", "identity")
    # A large λ: the series needs fewer terms.
    asked = MethodParameters(method="cg", beside=beside, rescore=3, damping=Damping(relative=0.5), solver=SOLVER)
    trace(parameters(root / "s", model, corpus, asked))
    return root / "s", model, corpus


def scores(store, method: str) -> np.ndarray:
    return np.array(
        [
            row[0]
            for row in ask(
                store, f"select influence from influences where method = '{method}' order by query_id, sequence_id"
            )
        ]
    )


def test_conjugate_gradients_and_the_series_give_the_influences_of_the_explicit_matrix(solved):
    store, _, _ = solved
    exact = scores(store, "exact")
    assert len(exact) == 48
    size = np.abs(exact).max()
    assert np.abs(scores(store, "cg") - exact).max() < 1e-3 * size
    assert np.abs(scores(store, "lissa") - exact).max() < 0.1 * size
    correlations = {m: np.corrcoef(scores(store, m), exact)[0, 1] for m in ("lissa", "ekfac", "diagonal", "identity")}
    assert correlations["lissa"] > 0.99
    assert correlations["ekfac"] > correlations["identity"]
    assert correlations["ekfac"] > correlations["diagonal"]


def test_residuals_fall_and_are_kept_by_iteration(solved):
    store, _, _ = solved
    of_cg = ask(
        store, "select query_id, list(residual order by iteration) from solver_residuals where method = 'cg' group by 1"
    )
    assert {name for name, _ in of_cg} == {"otter", "viper"}
    for _, residuals in of_cg:
        assert residuals[0] > 10 * residuals[-1]
        assert residuals[-1] <= 1e-5
    last = dict(ask(store, "select method, max(residual) from solver_residuals where method <> 'cg' group by 1"))
    assert last["exact"] < 1e-3
    assert last["lissa"] < 0.2
    assert last["datainf"] is None  # it solves another system


def test_the_runs_own_solver_has_tokens_that_sum_to_its_influence(solved):
    store, _, _ = solved
    rows = ask(
        store,
        "select i.influence, sum(t.influence) from influences i join token_influences t using (query_id, sequence_id) "
        "where i.method = 'cg' and i.exact group by all",
    )
    assert len(rows) >= 6
    for influence, tokens in rows:
        assert tokens == pytest.approx(influence, rel=1e-5)
    [(missing,)] = ask(store, "select count(*) from influences where method = 'cg' and relative_influence is null")
    assert missing == 0  # relative to EK-FAC's self-influence


def test_of_fastif_the_neighbours_have_the_very_scores_that_lissa_gives_them_among_all(solved):
    """Guo et al. 2021 (arXiv 2012.15781): nearest neighbours in hidden states first, then LiSSA for those alone."""
    store, model, corpus = solved
    [(among_all,)] = ask(store, "select run_id from runs where method = 'cg'")
    asked = MethodParameters(method="lissa", rescore=0, damping=Damping(relative=0.5), solver=SOLVER)
    nearest = CandidateParameters(filters=("embedding",), top_k=7)
    fastif = trace(parameters(store, model, corpus, asked).model_copy(update={"candidates": nearest}))
    pairs = ask(
        store,
        "select f.influence, a.influence from influences f join influences a using (query_id, sequence_id) "
        f"where f.run_id = '{fastif}' and a.run_id = '{among_all}' and f.method = 'lissa' and a.method = 'lissa'",
    )
    assert len(pairs) == 2 * 7
    size = np.abs(scores(store, "exact")).max()
    for found, expected in pairs:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5 * size)


def test_a_step_that_diverges_is_named(solved):
    store, model, corpus = solved
    wild = SOLVER.model_copy(update={"alpha": 1e9})
    with pytest.raises(InfluenceError, match="α = 1e\\+09"):
        trace(parameters(store, model, corpus, MethodParameters(method="lissa", solver=wild)))
