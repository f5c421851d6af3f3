"""The damping of a metric: what would leave a singular matrix singular is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.metrics import Damping


@pytest.mark.parametrize("given", [{"relative": 0.0}, {"relative": -0.1}, {"relative": None, "absolute": 0.0}])
def test_a_damping_that_is_not_above_zero_is_refused(given):
    with pytest.raises(ValidationError, match="greater than 0"):
        Damping(**given)


def test_a_damping_is_either_relative_or_absolute():
    with pytest.raises(ValidationError, match="either relative or absolute, found both or neither"):
        Damping(relative=0.1, absolute=0.1)
