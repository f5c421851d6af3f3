"""Scores of a study whose retrainings and influences are written by hand, against sums and ranks made by loops."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_runs
from scipy.stats import spearmanr

from storage.catalog import run_user_sql
from storage.errors import StoreError
from storage.prompts import make_prompt
from storage.schemas import SCHEMAS
from storage.store import create_store
from storage.tables import write_part
from tasks.learning.loop import TrainingParameters
from tasks.retraining_scores import (
    keep_figures,
    measure_spread,
    plan_removals,
    score_removals,
    score_subsets,
    solver_remainders,
)
from tasks.subsets import Retraining, Study

N, RUN = 12, "run-1"


def influence(method: str, query: str, sequence: int) -> float:
    return (sequence % 5 - 1.5) * (1 if method == "ekfac" else -0.5) + (sequence * sequence % 7) * (query == "q1")


@pytest.fixture
def study(tmp_path) -> Study:
    store = create_store(tmp_path / "s")
    tiny_runs.write_run(store, RUN, n=N)
    rows = [(q, m, s) for q in ("q0", "q1") for m in ("ekfac", "identity") for s in range(N)]
    columns = {
        "run_id": [RUN] * len(rows),
        "query_id": [q for q, _, _ in rows],
        "method": [m for _, m, _ in rows],
        "sequence_id": [s for _, _, s in rows],
        "influence": [influence(m, q, s) for q, m, s in rows],
    }
    ranks = {}
    for q, m, _ in rows:
        ordered = sorted(range(N), key=lambda s, q=q, m=m: (-influence(m, q, s), s))
        ranks |= {(q, m, s): place + 1 for place, s in enumerate(ordered)}
    columns["influence_rank"] = [ranks[row] for row in rows]
    filled = {name: columns.get(name, [None] * len(rows)) for name in SCHEMAS["influences"].names}
    write_part(store, "influences", RUN, columns=filled)
    asked = {"run_id": [RUN] * 2, "query_id": ["q0", "q1"], "n_completion_tokens": [2, 4],
             "log_probability": [-3.0, -5.0]}  # fmt: skip
    filled = {name: asked.get(name, [None] * 2) for name in SCHEMAS["run_queries"].names}
    write_part(store, "run_queries", RUN, columns=filled)
    prompts = (make_prompt("a", "b", "q0"), make_prompt("a", "c", "q1"))
    return Study(store, "study-1", tmp_path, TrainingParameters(seed=3), prompts)


def write(study: Study, retraining: Retraining, losses: tuple[float, float], seconds: float = 1.0) -> Retraining:
    name, n = f"{retraining.name}-{retraining.seed}".replace(" ", "-").replace(".", "-"), len(retraining.left_out)
    write_part(
        study.store, "removals", "study-1", name,
        columns={"study_id": ["study-1"] * n, "retraining": [retraining.name] * n,
                 "sequence_id": list(retraining.left_out)},
    )  # fmt: skip
    columns = {"study_id": ["study-1"] * 2, "retraining": [retraining.name] * 2, "kind": [retraining.kind] * 2,
               "seed": [retraining.seed] * 2, "query_id": ["q0", "q1"], "loss": list(losses),
               "seconds": [seconds] * 2}  # fmt: skip
    write_part(study.store, "retrainings", "study-1", name, columns=columns)
    return retraining


@pytest.fixture
def subsets(study) -> list[Retraining]:
    random, planned = np.random.default_rng(0), []
    for k in range(15):
        left_out = tuple(sorted(random.choice(N, 4, replace=False).tolist()))
        planned.append(write(study, Retraining(f"subset {k}", "subset", 3, left_out), tuple(random.normal(size=2) + 3)))
    write(study, Retraining("subset 99", "subset", 3, (0, 1)), (0.0, 0.0))  # of an earlier, larger plan
    return planned


def losses_of(study, planned) -> dict[str, list[float]]:
    rows = run_user_sql(study.store, "select query_id, retraining, loss from retrainings where kind = 'subset'")[1]
    known = {(q, r): loss for q, r, loss in rows}
    return {q: [known[q, r.name] for r in planned] for q in ("q0", "q1")}


def expected_score(study, planned, method: str) -> float:
    losses = losses_of(study, planned)
    found = []
    for q in ("q0", "q1"):
        kept = [sum(influence(method, q, s) for s in range(N) if s not in r.left_out) for r in planned]
        found.append(spearmanr(kept, -np.array(losses[q])).statistic)
    return float(np.mean(found))


def test_the_score_ranks_the_influence_that_stays_against_the_log_probability(study, subsets):
    figures = score_subsets.fn(study, RUN, subsets)
    for method in ("ekfac", "identity"):
        assert figures[method]["lds"].value == pytest.approx(expected_score(study, subsets, method), abs=1e-9)
    lead = figures["identity"]["lds_over_ekfac"].value
    assert lead == pytest.approx(figures["identity"]["lds"].value - figures["ekfac"]["lds"].value)
    kept = run_user_sql(study.store, "select method, metric, value, n from evaluations order by all")[1]
    assert {(m, name) for m, name, _, _ in kept} == {
        ("ekfac", "lds"), ("identity", "lds"), ("identity", "lds_over_ekfac"),
    }  # fmt: skip
    assert {n for *_, n in kept} == {15}


def test_a_retraining_without_a_loss_of_every_query_is_named(study, subsets):
    missing = Retraining("subset 77", "subset", 3, (0, 5))
    with pytest.raises(StoreError, match="found none for 1 of them, subset 77 first"):
        score_subsets.fn(study, RUN, [*subsets, missing])


def test_sql_over_the_stored_tables_gives_the_same_scores(study, subsets):
    every = [*subsets, Retraining("subset 99", "subset", 3, (0, 1))]
    statement = f"select method, avg(lds) from datamodelling_scores('study-1', '{RUN}') group by 1 order by 1"
    found = dict(run_user_sql(study.store, statement)[1])
    assert found == pytest.approx({m: expected_score(study, every, m) for m in ("ekfac", "identity")}, abs=1e-9)


def test_first_sequences_are_those_that_a_method_ranks_first_at_least_one(study):
    removals = plan_removals.fn(study, RUN, ["q1"], 0.25)
    assert set(removals) == {("ekfac", "q1"), ("identity", "q1")}
    for (method, query), retraining in removals.items():
        best = sorted(range(N), key=lambda s: (-influence(method, query, s), s))[:3]
        assert set(retraining.left_out) == set(best)
        assert (retraining.kind, retraining.seed) == ("top", 3)
    assert {len(r.left_out) for r in plan_removals.fn(study, RUN, ["q0", "q1"], 0.01).values()} == {1}
    assert len({r.name for r in plan_removals.fn(study, RUN, ["q0", "q1"], 0.25).values()}) == 4


def test_a_rise_is_of_the_query_whose_sequences_were_left_out_over_the_model_on_everything(study):
    write(study, Retraining("full", "full", 3), (3.0, 5.0))
    write(study, Retraining("full", "full", 4), (2.0, 9.0))  # another order: no part of the comparison
    removals = plan_removals.fn(study, RUN, ["q0", "q1"], 0.25)
    losses = {("ekfac", "q0"): (3.5, 0.0), ("ekfac", "q1"): (0.0, 7.0), ("identity", "q0"): (2.9, 0.0),
              ("identity", "q1"): (0.0, 5.0)}  # fmt: skip
    for pair, retraining in removals.items():
        write(study, retraining, losses[pair])
    figures = score_removals.fn(study, RUN, removals)
    assert figures["ekfac"]["query_loss_rise"].value == pytest.approx((0.5 + 2.0) / 2)
    assert figures["identity"]["query_loss_rise"].value == pytest.approx((-0.1 + 0.0) / 2)
    assert figures["ekfac"]["query_loss_rise_per_token"].value == pytest.approx((0.5 / 2 + 2.0 / 4) / 2)
    assert figures["ekfac"]["query_loss_rise"].n == 2


def test_spread_tells_subsets_from_orders_and_the_retrained_from_the_traced(study, subsets):
    for seed, losses in ((3, (3.25, 5.0)), (4, (3.5, 6.0)), (5, (3.0, 4.0))):
        write(study, Retraining("full", "full", seed), losses, seconds=3.0)
    spread, n, seconds = measure_spread.fn(study, RUN, subsets)
    by_query = [np.std(losses, ddof=1) for losses in losses_of(study, subsets).values()]
    assert spread.over_subsets == pytest.approx(np.median(by_query))
    assert spread.over_seeds == pytest.approx(np.median([np.std([3.25, 3.5, 3.0], ddof=1), 1.0]))
    assert spread.difference == pytest.approx(0.25)  # q0 was 3 nats under the traced model
    assert (n, seconds) == (19, 1.0)


def test_other_figures_of_a_run_stay_and_its_own_are_replaced(study, subsets):
    figures = score_subsets.fn(study, RUN, subsets)
    other = {"name": {"mrr": figures["ekfac"]["lds"]}}
    keep_figures(study.store, RUN, other)
    keep_figures(study.store, RUN, {"ekfac": {"lds": figures["identity"]["lds"]}})
    rows = run_user_sql(study.store, "select method, metric, value from evaluations where metric in ('lds', 'mrr')")[1]
    found = {(m, name): value for m, name, value in rows}
    assert len(rows) == 3
    assert found["name", "mrr"] == figures["ekfac"]["lds"].value
    assert found["ekfac", "lds"] == figures["identity"]["lds"].value


def test_where_solvers_ended_is_the_residual_of_each_querys_last_iteration(study):
    found = {("cg", "q0"): [1.0, 0.5, 0.2], ("cg", "q1"): [1.0, 0.4], ("lissa", "q0"): [0.3], ("datainf", "q0"): [None]}
    values = [(m, q, k, r) for (m, q), of in found.items() for k, r in enumerate(of)]
    columns = {"run_id": [RUN] * len(values), "method": [v[0] for v in values], "query_id": [v[1] for v in values],
               "iteration": [v[2] for v in values], "residual": [v[3] for v in values]}  # fmt: skip
    write_part(study.store, "solver_residuals", RUN, columns=columns)
    ended = solver_remainders(study, RUN)
    assert set(ended) == {"cg", "lissa"}
    assert (ended["cg"].iterations, ended["cg"].largest) == (2, 0.4)
    assert ended["cg"].median == pytest.approx(0.3)
    assert (ended["lissa"].iterations, ended["lissa"].largest) == (0, 0.3)
