"""The page of a retraining study: whole, self-contained, deaf to names, and honest about the noise."""

from __future__ import annotations

import re

from storage.pages import digest
from tasks.evaluation.ranking import Estimate
from tasks.retraining_page import describe_spread, lds_table, sweep_table, write_retraining_page
from tasks.retraining_scores import RetrainingStudy, Spread

HOSTILE = "<img src=x onerror=alert(1)></style><script>alert(2)</script>"


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1, 40)


def study(**changes) -> RetrainingStudy:
    fields = {
        "store": "/tmp/s", "study_id": "study-1", "run_id": "run-1", "model": "m", "n_sequences": 100,
        "n_left_out": 50, "n_first": 1, "n_queries": 20, "n_subsets": 40, "n_retrainings": 50, "seconds": 2.0,
        "order": "same", "spread": Spread(0.2, 0.1, 0.0),
        "figures": {
            "random": {"lds": estimate(-0.02), "lds_over_ekfac": estimate(-0.42)},
            "ekfac": {"lds": estimate(0.4), "query_loss_rise": estimate(0.05)},
            "cg": {"lds": estimate(0.6), "lds_over_ekfac": estimate(0.2)},
        },
        "sweep": {10.0: {"ekfac": estimate(0.3)}, 0.1: {"ekfac": estimate(0.4)}}, "command": "headwater …",
    }  # fmt: skip
    return RetrainingStudy(**fields | changes)


def test_methods_stand_by_falling_score_with_their_lead_and_gaps_where_they_have_none():
    table = lds_table(study())
    assert [row.name for row in table.rows] == ["CG on EK-FAC", "EK-FAC", "random"]
    assert table.columns == ("LDS", "lead over EK-FAC", "loss rise, nats")
    first, second, _ = table.rows
    assert (first.cells[0].value, first.cells[0].interval, first.cells[0].best) == (".600", "[.500, .700]", True)
    assert (first.cells[1].value, first.cells[2]) == (".200", None)
    assert (second.cells[1], second.cells[2].value) == (None, ".050")


def test_dampings_stand_in_order():
    assert [(row.name, row.cells[0].value) for row in sweep_table(study()).rows] == [("0.1", ".400"), ("10", ".300")]
    assert sweep_table(study(sweep={})) is None


def test_noise_is_said_in_nats_and_not_where_nothing_measured_it():
    assert "varies by 0.200 nats and over orders of all sequences by 0.100" in describe_spread(study())
    said = describe_spread(study(spread=Spread(0.2, None, 0.0)))
    assert "over orders" not in said


def test_the_page_runs_nothing_and_shows_what_it_is_told_as_text(tmp_path):
    page = write_retraining_page(study(command=HOSTILE, study_id=HOSTILE), tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert f"style-src '{digest(style)}'" in policy
    assert page.count("data:image/svg+xml;base64,") == 4  # two figures, for light and for dark pages
