"""Validation on small networks from end to end: figures, tables, pages, resumption, and what is refused."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest

from flows.mislabels import MislabelStudyParameters, search_mislabels
from flows.responses import ResponseParameters, measure_responses
from flows.validate_commands import print_responses
from storage.catalog import run_user_sql
from storage.errors import InputError
from storage.store import open_store
from tasks.influence.errors import InfluenceError
from tasks.mislabels_page import write_mislabel_page
from tasks.response_page import statements, write_response_page

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.slow]  # networks are trained by the dozen

NETWORK = {"hidden": (4,), "training": {"epochs": 10, "batch_size": 32}}
MAIN, MORE = 0.2, 1.0  # λ
ASKED = {
    "seeds": 3, "left_out": 6, "tests": 5, "dampings": (MAIN, MORE), "methods": ("ekfac", "cg", "lissa", "identity"),
    "iterations": 60,
    "effort": {"iterations": 60, "tolerance": 1e-6, "depth": 200, "batch": 1000, "rounds": 1},
}  # fmt: skip


def parameters(store, problem=None, **asked) -> ResponseParameters:
    return ResponseParameters.model_validate(
        {"store": str(store), "problem": problem or {"table": "wine"}, "network": NETWORK, "asked": ASKED | asked}
    )


def ask(store, statement: str) -> list[tuple]:
    return run_user_sql(open_store(store), statement)[1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    store = tmp_path_factory.mktemp("validation") / "s"
    return store, measure_responses(parameters(store))


def files(store) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (store / "studies").glob("*/*.safetensors")}


def test_influence_with_the_exact_curvature_foresees_the_linearised_response_and_the_pbrf(measured):
    _, found = measured
    for objective in ("linearised", "pbrf"):
        values = [found.correlations["cg", objective, damping, "pearson"].value for damping in (MAIN, MORE)]
        assert min(values) > 0.95, (objective, values)
    assert (
        found.correlations["cg", "pbrf", MAIN, "pearson"].value
        > found.correlations["cg", "cold", MAIN, "pearson"].value
    )
    assert found.correlations["lissa", "linearised", MORE, "pearson"].value > 0.9
    for method in ("ekfac", "identity"):
        assert found.correlations[method, "linearised", MAIN, "pearson"].value < 0.99


def test_gaps_are_between_neighbours_and_the_solvers_is_nearly_closed_by_conjugate_gradients(measured):
    _, found = measured
    gaps = {name: estimate.value for (name, damping), estimate in found.gaps.items() if damping in (0.0, MAIN)}
    assert list(gaps)[:4] == ["warm-start", "proximity", "non-convergence", "linearisation"]
    assert gaps["linearisation"] < min(gaps["warm-start"], gaps["proximity"], gaps["non-convergence"]) / 5
    assert gaps["solver cg"] < gaps["solver ekfac"] / 20
    assert "solver identity" not in gaps


def test_every_correlation_can_be_asked_of_the_tables_again(measured):
    store, found = measured
    again = {(row[0], row[1]): row[2] for row in ask(store, statements(found)[1])}
    for method in ASKED["methods"]:
        for damping in ASKED["dampings"]:
            expected = found.correlations[method, "pbrf", damping, "pearson"].value
            assert again[method, damping] == pytest.approx(expected, abs=1e-9)
    stood = ask(store, f"{statements(found)[0]} and metric = 'pearson[pbrf, damping {MAIN:g}]' and method = 'ekfac'")
    e = found.correlations["ekfac", "pbrf", MAIN, "pearson"]
    assert [row[2:] for row in stood] == [(e.value, e.ci_low, e.ci_high, 3)]
    changes = "select count(*) from loss_changes where source = 'cold' and damping is null"
    assert ask(store, changes) == [(3 * 6 * 5,)]


def test_a_study_that_is_asked_again_trains_nothing_and_one_that_lost_a_unit_makes_that_alone(measured):
    store, found = measured
    before = files(store)
    lost = next(name for name in before if "-pbrf-" in name)
    next((store / "studies").glob(f"*/{lost}")).unlink()
    again = measure_responses(parameters(store))
    after = files(store)
    assert {name for name in after if after[name] != before[name]} == {lost}
    for key, estimate in found.correlations.items():
        assert again.correlations[key].value == pytest.approx(estimate.value, abs=1e-9)
    measure_responses(parameters(store))
    assert files(store) == after


def test_the_page_and_the_terminal_say_the_same(measured, tmp_path, capsys):
    _, found = measured
    page = write_response_page(found, tmp_path / "page.html", "headwater evaluate pbrf").read_text()
    print_responses(found)
    shown = capsys.readouterr().out
    value = f"{found.correlations['cg', 'pbrf', MAIN, 'pearson'].value:.3f}".removeprefix("0")
    for text in (page, shown):
        assert value in text
        assert "EK-FAC" in text
    assert page.count("data:image/svg+xml;base64,") == 8  # four figures, for light and dark


def test_a_network_never_shown_an_example_differs_from_one_that_was(tmp_path):
    given = parameters(tmp_path / "s", dampings=(MAIN,), methods=("ekfac", "identity"))
    found = measure_responses(given.model_copy(update={"objectives": ("loo",)}))
    assert found.gaps == {}
    assert np.abs(found.seeds[0].measured["loo", 0.0]).max() > 1e-4
    page = write_response_page(found, tmp_path / "loo.html", "headwater evaluate loo").read_text()
    assert "leave-one-out" in page


def test_the_linearised_response_alone_needs_no_retraining_and_a_start_of_its_own_hides_the_example(tmp_path):
    given = parameters(tmp_path / "s", dampings=(MAIN,), methods=("cg", "identity"), start="own")
    alone = measure_responses(given.model_copy(update={"objectives": ("linearised",)}))
    assert alone.correlations["cg", "linearised", MAIN, "pearson"].value > 0.99
    assert "linearised" in write_response_page(alone, tmp_path / "alone.html", "headwater evaluate pbrf").read_text()
    own, same = (
        measure_responses(
            parameters(tmp_path / "s", dampings=(MAIN,), methods=("cg",), start=start).model_copy(
                update={"objectives": ("loo",)}
            )
        )
        for start in ("own", "same")
    )
    spread = [np.mean([s.measured["loo", 0.0].std(axis=0).mean() for s in some.seeds]) for some in (own, same)]
    assert spread[0] > 3 * spread[1]


def test_a_users_table_of_numbers_is_a_regression(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 3))
    with open(tmp_path / "t.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["a", "b", "c", "strength"])
        out.writerows(np.column_stack([x, x[:, 0] - x[:, 1] ** 2]).tolist())
    problem = {"table": str(tmp_path / "t.csv"), "target": "strength"}
    found = measure_responses(parameters(tmp_path / "s", problem, dampings=(MAIN,), methods=("cg", "exact")))
    assert found.correlations["exact", "linearised", MAIN, "pearson"].value > 0.95
    assert found.seeds[0].n == 48


def test_what_cannot_be_left_out_is_refused_before_anything_is_trained_and_a_step_that_diverges_is_named(tmp_path):
    store = tmp_path / "s"
    with pytest.raises(InputError, match="at most as many as there are, 142, found 143"):  # 80 % of 178
        measure_responses(parameters(store, left_out=143))
    assert files(store) == {}
    with pytest.raises(InfluenceError, match="LiSSA.*found α = 50. Use"):
        measure_responses(parameters(store, methods=("lissa",), effort={"alpha": 50.0, "batch": 1000}))


def test_wrong_labels_are_found_first(tmp_path):
    given = {"store": str(tmp_path / "s"), "problem": {"table": "digits", "examples": 500}, "network": NETWORK | {
        "hidden": (16,)}, "asked": {"seeds": 3}}  # fmt: skip
    found = search_mislabels(MislabelStudyParameters.model_validate(given))
    shares = {method: found.estimates[method, 0.2].value for method in ("ekfac", "identity", "loss", "random")}
    assert min(shares["ekfac"], shares["identity"], shares["loss"]) > 0.6, shares
    assert shares["random"] < 0.35
    assert (found.n, found.n_wrong) == (400, 40)
    page = write_mislabel_page(found, tmp_path / "page.html", "headwater evaluate mislabelled").read_text()
    assert "self-influence, EK-FAC" in page
    began = time.time_ns()
    search_mislabels(MislabelStudyParameters.model_validate(given))
    assert max(files(tmp_path / "s").values()) < began
    with pytest.raises(InputError, match="expected classes"):
        search_mislabels(MislabelStudyParameters.model_validate(given | {"problem": {"table": "diabetes"}}))
