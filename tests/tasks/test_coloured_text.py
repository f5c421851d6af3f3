"""Tokens in colours without a script: sides, steps of strength, and the numbers of the scale."""

from __future__ import annotations

import re

from storage.pages import source
from tasks.coloured_text import LEVELS, ColouredText, coloured


def test_red_raised_teal_lowered_and_a_quarter_of_the_largest_value_stands_half_way():
    found = coloured(ColouredText("update", ["a", "b", "c", "d"], [None, 4.0, -1.0, 0.0]))
    assert [token["kind"] for token in found["tokens"]] == [
        "raised level-0", "raised level-20", "lowered level-10", "raised level-0",
    ]  # fmt: skip
    assert [token["said"] for token in found["tokens"]] == [
        "token 0: nothing predicts it", "token 1: +4", "token 2: −1", "token 3: 0",
    ]  # fmt: skip
    assert found["scale"] == ["−4", "−1", "0", "+1", "+4"]


def test_marks_that_stand_on_another_tokens_letter_are_joined():
    words = ["e", "\u0301", "\u200d", " \u0301", "", "ש"]
    found = coloured(ColouredText("update", words, [1.0] * len(words)))
    assert ["joined" in token["kind"] for token in found["tokens"]] == [False, True, True, False, False, False]


def test_a_text_without_numbers_has_no_colour():
    for values in ([], [None, None], [0.0, 0.0]):
        found = coloured(ColouredText("update", ["x"] * len(values), values))
        assert {token["kind"] for token in found["tokens"]} <= {"raised level-0"}
        assert found["scale"][0] in ("0", "−0")


def test_the_style_has_a_rule_for_every_step_and_every_mark():
    rules = dict(re.findall(r"\.(level-\d+) \{ --a: ([\d.]+); \}", source("tokens.css")))
    assert {name: float(value) for name, value in rules.items()} == {
        f"level-{k}": k / LEVELS for k in range(LEVELS + 1)
    }
    marks = re.findall(r"\.mark-(\d) \{ --x: (\d+)%; \}", source("tokens.css"))
    assert marks == [("0", "0"), ("1", "25"), ("2", "50"), ("3", "75"), ("4", "100")]
