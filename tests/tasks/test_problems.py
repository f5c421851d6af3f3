"""A table as a problem: split by seed, and in the units of what is learned."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_wine

from storage.errors import InputError
from tasks.problems import CLIP, ProblemParameters, make_problem


def test_inputs_and_numbers_are_in_the_units_of_the_training_examples():
    split, table = make_problem(ProblemParameters(table="diabetes"), 3), load_diabetes()
    assert (split.problem.n, len(split.test_rows)) == (354, 88)
    assert sorted([*split.rows, *split.test_rows]) == list(range(442))
    mean, deviation = table.data[split.rows].mean(0), table.data[split.rows].std(0)
    expected = np.clip((table.data[split.test_rows] - mean) / deviation, -CLIP, CLIP)
    np.testing.assert_allclose(split.problem.test_inputs, expected, rtol=1e-12)
    assert float(split.problem.targets.mean()) == pytest.approx(0, abs=1e-12)
    assert float(split.problem.targets.square().mean()) == pytest.approx(1)


def test_a_pixel_that_is_hardly_ever_lit_and_one_that_never_is_stand_out_no_further():
    problem = make_problem(ProblemParameters(table="digits"), 0).problem
    assert float(problem.inputs.abs().max()) == CLIP
    assert bool(problem.inputs.isfinite().all())
    assert problem.outputs == 10


def test_another_seed_is_another_split_and_fewer_examples_are_drawn_by_it():
    splits = [make_problem(ProblemParameters(table="wine", examples=50), seed) for seed in (0, 1)]
    assert [split.problem.n for split in splits] == [40, 40]
    assert set(splits[0].rows) != set(splits[1].rows)
    assert splits[0].problem.targets.tolist() == load_wine().target[splits[0].rows].tolist()


def test_a_table_with_nothing_left_to_learn_is_refused():
    with pytest.raises(InputError, match="at least 2 examples to learn, found 1 beside 9"):
        make_problem(ProblemParameters(table="wine", examples=10, test_share=0.9), 0)
