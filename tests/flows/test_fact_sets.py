"""Commands about fact-tracing sets: a generated one is a set like any other."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage.digests import digest_of_file
from storage.errors import InputError
from storage.fact_sets import collapse_keys, proponents, read_fact_set


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["fact-set", "synth", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("form", "n_queries", "n_proponents"), [("causal", 4, 31), ("masked", 8, 124)])
def test_a_generated_set_reads_back_with_its_truth(tmp_path, form, n_queries, n_proponents):
    said = run("--entities", 4, "--form", form, "-o", tmp_path / "set")
    found = read_fact_set(tmp_path / "set")
    assert (len(found.queries), found.without_proponent) == (n_queries, ())
    assert {len(documents) for documents in proponents(found).values()} == {n_proponents}
    versions = collapse_keys(found)
    assert len(versions) == (4 if form == "masked" else 1) * len(set(versions.values()))
    assert f"40 facts in {len(versions):,} documents, {n_queries} queries about 4 of them" in said


def test_the_same_command_again_changes_nothing_and_another_seed_is_refused(tmp_path):
    run("--entities", 3, "-o", tmp_path / "set")
    before = digest_of_file(tmp_path / "set" / "queries.parquet")
    run("--entities", 3, "-o", tmp_path / "set")
    with pytest.raises(InputError, match="Name another directory"):
        run("--entities", 3, "--seed", 1, "-o", tmp_path / "set")
    assert digest_of_file(tmp_path / "set" / "queries.parquet") == before
