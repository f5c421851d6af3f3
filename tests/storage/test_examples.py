"""Tables of examples: what is read, what it is taken for, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_diabetes, load_digits

from storage.errors import InputError
from storage.examples import read_examples


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_bundled_tables_are_scikit_learns():
    found, expected = read_examples("digits", None), load_digits()
    assert (found.kind, found.classes) == ("classification", tuple("0123456789"))
    np.testing.assert_array_equal(found.inputs, expected.data)
    np.testing.assert_array_equal(found.targets, expected.target)
    found = read_examples("diabetes", None)
    assert found.kind == "regression"
    np.testing.assert_array_equal(found.targets, load_diabetes().target)


def test_words_are_classes_and_fractions_are_numbers(tmp_path):
    table = write(tmp_path / "t.csv", "age,kind,height\n3,oak,1.5\n4,ash,2.5\n5,oak,0.5\n")
    found = read_examples(table, "kind")
    assert (found.kind, found.classes) == ("classification", ("ash", "oak"))
    assert found.targets.tolist() == [1, 0, 1]
    assert found.inputs.tolist() == [[3, 1.5], [4, 2.5], [5, 0.5]]
    numbers = write(tmp_path / "n.csv", "a,b\n1,0.5\n2,1.5\n")
    assert read_examples(numbers, "b").kind == "regression"
    assert read_examples(numbers, "a").kind == "classification"
    assert read_examples(numbers, "a", "regression").targets.tolist() == [1, 2]


def test_parquet_and_booleans_are_read_and_a_changed_file_is_another_table(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [True, False, True], "y": [0, 1, 1]}), path)
    found = read_examples(str(path), "y")
    assert found.inputs.tolist() == [[1], [0], [1]]
    pq.write_table(pa.table({"x": [True, True, True], "y": [0, 1, 1]}), path)
    assert read_examples(str(path), "y").fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("a,b\n1,2\n", None, "name of its target column in --target, found none"),
        ("a,b\n1,2\n", "c", "found 'c', and columns a, b"),
        ("a,b\nred,2\nblue,3\n", "b", "column 'a'.*expected numbers, found string"),
        ("a,b\n1,2\n,3\n", "b", "column 'a'.*found 1 of 2 rows without one"),
        ("a,b\n1,x\n2,x\n", "b", "2 to 1,000 classes, found 1 different"),
        ("a,b\n", "b", "expected rows"),
        ("a,b\n1,2,3\n", "b", "CSV with a line of names"),
    ],
)
def test_a_table_that_cannot_be_learned_is_refused_by_name(tmp_path, text, target, said):
    with pytest.raises(InputError, match=said):
        read_examples(write(tmp_path / "t.csv", text), target)


def test_a_name_that_is_no_table_is_refused_with_those_that_are():
    with pytest.raises(InputError, match="digits, wine.*found another name"):
        read_examples("mnist", None)
    with pytest.raises(InputError, match="found nothing there"):
        read_examples("nowhere.csv", "y")
