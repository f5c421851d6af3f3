"""The page of a study of datasets: whole, self-contained, deaf to names, and silent where nothing is known."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from storage.pages import digest
from storage.prompts import make_prompt
from storage.store import Store
from tasks.evaluation.ranking import Estimate
from tasks.learning.ascent import AscentParameters
from tasks.learning.loop import TrainingParameters
from tasks.mixtures import Mixture, Unlearning
from tasks.subsets import Study
from tasks.untrac_page import describe, notes, score_table, truth_table, write_untrac_page
from tasks.untrac_scores import INVERSE, UNTRAC, Findings, SeedRun

HOSTILE = "<img src=x onerror=alert(1)></style><script>alert(2)</script>"


def estimate(value: float, known: bool = True) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1, 6) if known else Estimate(value, math.nan, math.nan, 2)


def findings(known: bool = True, **changes) -> Findings:
    store, prompts = Store(Path("/tmp/s")), (make_prompt("a", "b", "q0"), make_prompt("a", "c", "q1"))
    mixture = Mixture("file", {"news": (0, 1), HOSTILE: (2,), "law": (3,)}, {"left": ("q0",), "right": ("q1",)})
    unlearning = Unlearning(store, "untrac-1", "datasets", Path("m"), mixture, prompts, AscentParameters(), 256)
    measured = np.array([[[0.1, 0.2], [0.4, -0.1], [0.3, 0.0]], [[0.3, 0.2], [0.6, -0.1], [0.1, 0.0]]])
    values = {UNTRAC: 0.7, INVERSE: 0.4, "ekfac": 0.9, "size": 0.0}
    fields = {
        "study": Study(store, "study-1", Path("m"), TrainingParameters(), prompts),
        "mixture": mixture,
        "runs": (SeedRun(0, unlearning, unlearning, "run-1"), SeedRun(1, unlearning, unlearning, "run-2")),
        "measured": measured,
        "predicted": {name: measured for name in values},
        "figures": {
            name: {metric: estimate(value, known) for metric in ("pearson", "spearman", "finds_first")}
            for name, value in values.items()
        },
        "seconds": {"retraining": 60.4, UNTRAC: 5.0, INVERSE: 2.0},
        "command": HOSTILE,
    }
    return Findings(**fields | changes)


def test_methods_stand_by_falling_correlation_with_their_intervals():
    table = score_table(findings())
    assert [row.name for row in table.rows] == ["EK-FAC", "UnTrac", "UnTrac-Inverse", "size, in sequences"]
    assert (table.rows[0].cells[0].value, table.rows[0].cells[0].interval) == (".900", "[.800, 1.000]")
    assert [row.cells[0].best for row in table.rows] == [True, False, False, False]


def test_where_there_is_no_interval_none_is_shown_and_the_reason_is_said():
    assert {cell.interval for row in score_table(findings(False)).rows for cell in row.cells} == {""}
    assert "There is none here" in notes(findings(False))[0]
    assert "There is none here" not in notes(findings())[0]


def test_the_truth_is_the_mean_over_seeds_and_the_dearest_dataset_of_each_group_is_marked():
    table = truth_table(findings())
    assert table.columns == ("left", "right")
    assert [[cell.value for cell in row.cells] for row in table.rows] == [
        ["+.200", "+.200"], ["+.500", "−.100"], ["+.200", ".000"],
    ]  # fmt: skip
    assert [[cell.best for cell in row.cells] for row in table.rows] == [[False, True], [True, False], [False, False]]


def test_what_was_trained_is_said_with_its_seconds():
    said = describe(findings())
    assert "taught 4 sequences of 3 datasets, and again without each of them (2 seeds)" in said
    assert "2 queries in 2 groups" in said
    assert "retraining took 60 s, unlearning the datasets 5 s, unlearning the queries 2 s" in said


def test_the_page_runs_nothing_and_shows_what_it_is_told_as_text(tmp_path):
    page = write_untrac_page(findings(), tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert f"style-src '{digest(style)}'" in policy
    assert page.count("data:image/svg+xml;base64,") == 4  # two figures, for light and for dark pages
