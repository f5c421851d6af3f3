"""A study of examples left out: what it is named by, which units it has, and what is refused before a network is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from storage.errors import InputError
from storage.store import create_store
from tasks.evaluation.inverses import EffortParameters
from tasks.problems import NetworkParameters, ProblemParameters
from tasks.response_study import LeaveOutParameters, describe_responses, retraining_units

WINE = ProblemParameters(table="wine")  # 142 to learn, 36 to ask about
NARROW = NetworkParameters(hidden=(4,))
CHAIN = ("cold", "pbrf")


def describe(tmp_path, network=NARROW, **asked):
    given = {"seeds": 3, "left_out": 40, "tests": 5, "dampings": (0.2, 1.0)} | asked
    return describe_responses(create_store(str(tmp_path / "s")), WINE, network, LeaveOutParameters(**given), CHAIN)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"left_out": 143}, "at most as many as there are, 142, found 143.*Ask for fewer"),
        ({"left_out": 4}, "examples left out.*at least 5, of which an interval can be made, found 4"),
        ({"tests": 37}, "test examples.*at most as many as there are, 36"),
        ({"seeds": 2}, "seeds.*at least 3, of which an interval can be made, found 2. Ask for more"),
        ({"dampings": (0.2, 0.0)}, "damping: expected λ above zero: G is singular.*found 0. Give a positive --damping"),
        ({"dampings": (-0.1,)}, "damping: expected λ above zero.*found -0.1"),
        ({"network": NetworkParameters(hidden=(600,))}, "exact.*at most 8,192 weights, found 10,203"),
    ],
)
def test_what_cannot_be_left_out_or_would_give_no_interval_is_refused(tmp_path, asked, says):
    with pytest.raises(InputError, match=says):
        describe(tmp_path, **asked)


def test_a_step_and_a_scale_of_lissa_are_one_thing_said_twice():
    with pytest.raises(ValidationError, match="either alpha or scale"):
        LeaveOutParameters(effort=EffortParameters.model_validate({"alpha": 0.1, "scale": 10}))


def test_a_study_is_named_by_what_decides_its_figures_and_more_seeds_or_dampings_are_the_same_study(tmp_path):
    study = describe(tmp_path)
    assert describe(tmp_path, seeds=5, dampings=(0.2, 1.0, 3.0)).study_id == study.study_id
    others = [
        describe(tmp_path, start="own"),
        describe(tmp_path, left_out=41),
        describe(tmp_path, network=NetworkParameters(hidden=(4,), activation="relu")),
    ]
    assert len({study.study_id, *(other.study_id for other in others)}) == 4


def test_units_take_every_example_left_out_once(tmp_path):
    study = describe(tmp_path)
    assert [(u.damping, u.block) for u in retraining_units(study, 1, "pbrf")] == [
        (damping, block) for damping in (0.2, 1.0) for block in range(5)
    ]
    assert [u.block for u in retraining_units(study, 1, "cold")] == [0, 1]
