"""Keeping house over a store that was really traced: verify finds what is broken, nothing else changes a row."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml
from tiny_runs import STARTED, tables, write_run
from typer.testing import CliRunner

from flows.cli import app
from flows.compact import CompactStoreParameters, compact_store
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.store_commands import parse_age
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.errors import InputError, StoreError
from storage.factors import fit_ids
from storage.leftovers import find_leftovers
from storage.locks import locked
from storage.retention import delete_runs, list_runs, older_runs, remove_unused, unused_without
from storage.sequences import all_parts, write_manifest
from storage.staging import write_note
from storage.store import create_store, open_store
from storage.tables import read_part, write_part
from storage.tensors import read_tensors, write_tensors
from storage.verification import verify
from tasks.corpus import CorpusParameters
from tasks.methods import MethodParameters

ROOT = Path(__file__).parents[2]
QUERY = QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter")


def parameters(store, gpt2, corpus, **method):
    return TraceParameters(
        store=str(store),
        model=ModelParameters(name=str(gpt2)),
        queries=(QUERY,),
        corpus=CorpusParameters(inputs=(str(corpus),)),
        method=MethodParameters(rescore=3, **method),
        cluster="none",
    )


@pytest.fixture(scope="module")
def traced(tmp_path_factory, gpt2, corpus, prefect_db):
    root = tmp_path_factory.mktemp("traced") / "s"
    trace(parameters(root, gpt2, corpus))
    trace(parameters(root, gpt2, corpus, method="identity"))
    return root


@pytest.fixture
def store(traced, tmp_path):
    return open_store(shutil.copytree(traced, tmp_path / "s"))


def run_of(store, method="ekfac"):
    return run_user_sql(store, f"select run_id from runs where method = '{method}'")[1][0][0]


def headwater(*arguments, **options):
    found = CliRunner().invoke(app, [*map(str, arguments)], **options)
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def test_a_sound_store_is_found_sound_before_and_after_compaction(store):
    before = tables(store)
    code, said = headwater("store", "verify", "--store", store.root)
    assert (code, "nothing is wrong" in said) == (0, True), said
    assert "2 complete runs" in said
    arguments = ("--store", store.root, "--settle-seconds", 0, "--grace-seconds", 0)
    assert "2 runs merged" in headwater("store", "compact", *arguments)[1]
    assert not store.file("influences", run_of(store)).exists()
    assert tables(store) == before
    assert headwater("store", "verify", "--store", store.root)[0] == 0
    assert len(list_runs(store)) == 2


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("relation", ["sequences", "postings", "queries", "influences", "self_influences"])
def test_a_flipped_bit_in_any_table_is_found(store, relation):
    path = next(p for p in sorted(store.relation(relation).rglob("*.parquet")) if p.stem != "schema")
    flip(path)
    code, said = headwater("store", "verify", "--store", store.root)
    assert code == 1
    assert str(path.relative_to(store.root)) in said
    assert "other bytes than it was written with" in said


def wrong(store) -> dict[str, str]:
    return {finding.what: finding.found for finding in verify(store)[1]}


def test_flipped_bits_and_infinite_numbers_in_factors_are_found(store):
    first, second = sorted((store.root / "factors").rglob("*.safetensors"))[:2]
    flip(first)
    tensors = read_tensors(second)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    write_tensors(store, second, {**tensors, name: torch.full_like(tensors[name], torch.inf)})
    found = wrong(store)
    assert found[str(first.relative_to(store.root))].startswith("other bytes")
    assert found[str(second.relative_to(store.root))] == f"numbers in {name} that are not finite"


def test_rows_that_were_changed_and_sealed_again_are_found_by_the_checks(store):
    run = run_of(store)
    table = read_part(store, "influences", run)
    place = table.schema.get_field_index("influence")
    write_part(store, "influences", run, columns=table.set_column(place, "influence", pc.add(table["influence"], 1.0)))
    assert list(wrong(store)) == [f"run {run}"]
    said = [finding.found for finding in verify(store)[1]]
    assert any("checks/layers_sum_to_influence" in text for text in said)
    assert any("checks/tokens_sum_to_influence" in text for text in said)


def test_a_missing_part_of_a_run_and_columns_of_another_relation_are_found(store):
    one, other = run_of(store), run_of(store, "identity")
    store.file("layer_influences", one).unlink()
    shutil.copy(store.file("modules", other), store.file("influences", other))
    found = wrong(store)
    assert found[f"run {one}"] == f"no layer_influences/{one}.parquet"
    assert found[f"tables/influences/{other}.parquet"].startswith("columns run_id, module")


def test_gaps_and_wrong_counts_in_the_corpus_are_found(store):
    (part,) = all_parts(store)
    table = read_part(store, "sequences", part.name)
    write_part(store, "sequences", part.name, columns=pa.concat_tables([table.slice(0, 5), table.slice(6)]))
    write_manifest(store, type(part)(**{**part.__dict__, "name": "p00001", "source": "x", "first_sequence_id": 99}))
    found = wrong(store)
    assert "other sequence ids" in found[f"tables/sequences/{part.name}.parquet"] or "tokens" in str(found)
    assert found["parts/p00001.json"].startswith("sequence ids from 99")


def test_an_index_or_documents_that_do_not_fit_their_sequences_are_found(store):
    terms, postings = (read_part(store, name, "p00000") for name in ("terms", "postings"))
    write_part(store, "terms", "p00000", columns=terms.slice(1))
    place = postings.schema.get_field_index("sequence_id")
    write_part(
        store, "postings", "p00000", columns=postings.set_column(place, "sequence_id", pc.add(postings[place], 1))
    )
    write_part(store, "documents", "p00000", columns=read_part(store, "documents", "p00000").slice(1))
    found = wrong(store)
    assert found["tables/terms/p00000.parquet"].startswith("document frequencies that sum to ")
    assert found["tables/postings/p00000.parquet"] == "postings of sequences of another part"
    assert found["tables/documents/p00000.parquet"] == "47 documents in place of 48"
    assert found["tables/sequences/p00000.parquet"] == "sequences of documents that the part does not have"
    store.file("documents", "p00000").unlink()
    assert wrong(store)["tables/documents/p00000.parquet"] == "no file"


def test_what_belongs_to_nothing_is_found_unless_somebody_works_on_it(store):
    write_run(store, "run-orphan", complete=False)
    (store.root / "work" / "run-staged").mkdir()
    write_part(store, "documents", "p00009", columns=read_part(store, "documents", "p00000"))
    found = wrong(store)
    assert set(found) == {"run run-orphan", "run run-staged", "tables/documents/p00009.parquet"}
    with locked(store, "run-orphan"), locked(store, "corpus"):
        assert set(wrong(store)) == {"run run-staged"}


def test_a_catalog_that_duckdb_cannot_open_is_found(store):
    assert wrong(store) == {}
    store.catalog.write_bytes(b"no database" * 1000)
    assert "headwater.duckdb" in wrong(store)


def test_runs_are_listed_with_what_they_took_and_what_was_broken_off(store):
    (store.root / "work" / "run-staged").mkdir()
    write_run(store, "run-orphan", complete=False)
    code, said = headwater("runs", "list", "--store", store.root, "--format", "json")
    assert code == 0
    by_run = {row["run"]: row for row in json.loads(said)}
    assert by_run["run-staged"]["state"] == by_run["run-orphan"]["state"] == "interrupted"
    row = by_run[run_of(store)]
    n = run_user_sql(store, "select count(*) from sequences")[1][0][0]
    assert (row["state"], row["method"], row["queries"], row["sequences"]) == ("complete", "ekfac", 1, n)
    own = [
        path for path in (store.root / "tables").glob(f"*/{run_of(store)}.parquet") if path.parent.name != "evaluations"
    ]
    assert row["bytes"] == sum(path.stat().st_size for path in own)
    assert "interrupted" in headwater("runs", "list", "--store", store.root)[1]


def test_a_run_is_shown_with_its_parameters_coverage_and_sql(store):
    run = run_of(store)
    code, said = headwater("runs", "show", run, "--store", store.root)
    assert code == 0
    assert "method.damping.relative" in said
    assert "4 of" in said  # the MLP matrices of two layers
    assert f"top_influences('otter', run := '{run}')" in said
    with pytest.raises(InputError, match="no run of that name"):
        headwater("runs", "show", "run-nobody", "--store", store.root)


@pytest.mark.parametrize("merged", [False, True])
def test_a_deleted_run_is_gone_and_tracing_again_gives_the_same_rows(store, gpt2, corpus, merged):
    if merged:
        headwater("store", "compact", "--store", store.root, "--settle-seconds", 0, "--grace-seconds", 0)
    run, before = run_of(store), tables(store)
    kept = {name: [row for row in rows if row[0] != run] for name, rows in before.items()}
    code, said = headwater("runs", "delete", run, "--store", store.root, input="n\n")
    assert (code, tables(store) == before) == (1, True), said
    code, said = headwater("runs", "delete", run, "--store", store.root, "--yes", "--factors", "--now")
    assert code == 0
    assert tables(store) == kept
    assert [path.name for path in (store.root / "tables").glob(f"*/{run}.parquet")] == []
    assert list((store.root / "factors").iterdir()) == []
    assert run_user_sql(store, "select query_id from queries")[1] == [("otter",)]
    assert trace(parameters(store.root, gpt2, corpus)) == run
    after = tables(store)
    assert [row for row in after["influences"] if row[0] == run] == [r for r in before["influences"] if r[0] == run]
    assert headwater("store", "verify", "--store", store.root)[0] == 0


def test_only_what_no_other_run_uses_goes_with_a_run(store):
    ekfac, identity = run_of(store), run_of(store, "identity")
    one = {(item.kind, item.name[:3]) for item in unused_without(store, [ekfac])}
    assert one == {("self-influences", "ek-"), ("factors", "fit")}
    assert {(item.kind, item.name[:3]) for item in unused_without(store, [identity])} == {("self-influences", "id-")}
    both = {(item.kind, item.name[:3]) for item in unused_without(store, [ekfac, identity])}
    assert both == {("self-influences", "ek-"), ("self-influences", "id-"), ("factors", "fit")}


def test_what_a_run_under_way_uses_stays(store):
    """It has no row yet; what it noted when it began counts, from before it looks until it is complete or deleted."""
    run, fit = run_of(store), fit_ids(store)[0]
    (facts,) = [found.facts for found in list_runs(store) if found.run_id == run]
    unused = unused_without(store, [run])
    assert {item.kind for item in unused} == {"factors", "self-influences"}
    write_note(store, "run-begun", "uses", {**facts, "run_id": "run-begun", "finished_at": None})
    assert unused_without(store, [run]) == []
    delete_runs(store, [run], timedelta(0))
    assert [remove_unused(store, item) for item in unused] == [False, False]  # found before the run began
    assert (store.root / "factors" / fit / "manifest.json").exists()
    old = {path: os.utime(path, (1.7e9, 1.7e9)) for path in (store.root / "factors" / fit).iterdir()}
    assert old
    assert find_leftovers(store, list_runs(store), timedelta(days=1)) == []
    delete_runs(store, ["run-begun"], timedelta(0))
    assert [remove_unused(store, item) for item in unused] == [True, True]


def test_a_resumed_run_measures_anew_the_self_influences_that_were_deleted_under_it(
    tmp_path, gpt2, corpus, monkeypatch, prefect_db
):
    def stop(*_):
        raise StoreError("x", expected="a", found="b", remedy="c")

    asked = parameters(tmp_path / "s", gpt2, corpus)
    with monkeypatch.context() as patch:
        patch.setattr("flows.trace.score_tokens", stop)
        with pytest.raises(StoreError):
            trace(asked)
    store = open_store(tmp_path / "s")
    (begun,) = [found.uses for found in list_runs(store)]
    before = sorted(path.name for path in store.relation("self_influences").glob("ek-*"))
    assert before == [begun["factors_id"]]
    shutil.rmtree(store.relation("self_influences") / begun["factors_id"])
    run = trace(asked)
    assert run_user_sql(store, "select count(*) from influences where relative_influence is null")[1] == [(0,)]
    table = read_part(store, "influences", run)
    place = table.schema.get_field_index("relative_influence")
    nothing = pa.nulls(len(table), pa.float64())
    write_part(store, "influences", run, columns=table.set_column(place, "relative_influence", nothing))
    assert "checks/self_influences_are_there" in " ".join(finding.found for finding in verify(store)[1])


def test_what_the_next_run_may_use_is_not_pruned(store):
    code, said = headwater("store", "prune", "--store", store.root, "--keep", 0, "--yes", "--now")
    assert (code, list_runs(store)) == (0, []), said
    assert len(fit_ids(store)) == 1
    assert run_user_sql(store, "select count(*) > 0 from self_influences")[1] == [(True,)]


@pytest.mark.parametrize("relation", ["queries", "influences"])
def test_commands_that_meet_a_damaged_file_lead_to_verify(store, relation):
    path = next(p for p in sorted(store.relation(relation).rglob("*.parquet")) if p.stem != "schema")
    path.write_bytes(path.read_bytes()[:-50] + b"\0" * 50)
    with pytest.raises((StoreError, InputError), match="headwater store verify"):
        headwater("runs", "show", "--store", store.root)


def test_a_run_at_work_is_not_deleted(store):
    run = run_of(store)
    with locked(store, run), pytest.raises(StoreError, match=f"lock {run}"):
        delete_runs(store, [run])
    assert run_of(store) == run


def test_retention_lets_old_runs_go_and_keeps_the_latest(tmp_path):
    store = create_store(tmp_path / "s")
    for day in range(5):
        write_run(store, f"run-{day}", day=100 * day)  # finished on 2026-01-01 and so on; `now` is later
    now = max(run.at for run in list_runs(store)) - STARTED
    assert now == timedelta(days=400)
    age = run_user_sql(store, "select date_diff('day', max(finished_at), now()::timestamp) from runs")[1][0][0]
    assert {r.run_id for r in older_runs(store, timedelta(days=age + 150), None)} == {"run-0", "run-1", "run-2"}
    assert {r.run_id for r in older_runs(store, timedelta(days=age + 150), 4)} == {"run-0"}
    assert {r.run_id for r in older_runs(store, None, 2)} == {"run-0", "run-1", "run-2"}
    assert older_runs(store, None, None) == []
    before = tables(store)
    code, said = headwater("store", "prune", "--store", store.root, "--keep", 3)
    assert (code, "nothing was removed" in said, tables(store) == before) == (0, True, True)
    headwater("store", "prune", "--store", store.root, "--keep", 3, "--yes", "--now")
    assert sorted(row[0] for row in tables(store)["runs"]) == ["run-2", "run-3", "run-4"]
    assert not store.file("influences", "run-0").exists()


def test_the_nightly_compaction_removes_what_is_superseded_and_old_runs_only_when_asked(store, gpt2):
    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    (nightly,) = [d["parameters"]["parameters"] for d in deployments if d["name"] == "compact-store"]
    superseded = shutil.copytree(store.root / "factors" / fit_ids(store)[0], store.root / "factors" / "fit-00000000")
    manifest = json.loads((superseded / "manifest.json").read_text())
    manifest = {**manifest, "fit_id": superseded.name, "made_from": {**manifest["made_from"], "corpus": "another"}}
    (superseded / "manifest.json").write_text(json.dumps(manifest))
    for path in [*superseded.iterdir(), superseded]:
        os.utime(path, (1.7e9, 1.7e9))
    used = fit_ids(store)[1:]

    def compact(**retention) -> int:
        asked = {**nightly, "store": str(store.root), "compaction": {"settle_seconds": 0, "grace_seconds": 0}}
        asked["retention"] = {**nightly["retention"], **retention}
        return compact_store(CompactStoreParameters.model_validate(asked)).pruned

    assert compact() == 1
    assert (fit_ids(store), len(list_runs(store))) == (used, 2)
    assert compact(run_days=1e-9, keep_runs=2) == 0
    assert compact(run_days=1e-9, keep_runs=1) > 0
    assert [run.method for run in list_runs(store)] == ["identity"]  # the later one


def test_prune_finds_embeddings_of_replaced_parts_and_broken_work_and_leaves_the_rest(store):
    folder = store.root / "embeddings" / "em-1" / "p00000-0000000000000000"
    write_tensors(store, folder / "0-2.safetensors", {"embeddings": torch.zeros(2, 3)})
    (store.root / "work" / "cut-0").mkdir()
    (store.root / "work" / "part.parquet.0123456789ab").write_bytes(b"half")
    (store.root / "factors" / ".manifest.json.01234567").write_text("{")
    found = find_leftovers(store, list_runs(store), timedelta(0))
    assert {(item.kind, item.name) for item in found} == {
        ("embeddings", folder.name), ("work", "cut-0"), ("work", "part.parquet.0123456789ab"),
        ("work", ".manifest.json.01234567"),
    }  # fmt: skip
    assert find_leftovers(store, list_runs(store), timedelta(days=1)) == []  # somebody may be writing them now


def test_runs_that_were_broken_off_long_ago_are_pruned_unless_somebody_works_on_them(store):
    for run in ("run-old", "run-held"):
        write_run(store, run, complete=False)
        (store.root / "work" / run).mkdir()
        for path in [*(store.root / "tables").glob(f"*/{run}.parquet"), store.root / "work" / run]:
            os.utime(path, (1.7e9, 1.7e9))
    write_run(store, "run-young", complete=False)
    with locked(store, "run-held"):
        code, said = headwater("store", "prune", "--store", store.root, "--yes", "--now")
    assert (code, "broken off 2023-11-14" in said) == (0, True), said
    left = {run.run_id: run.state for run in list_runs(store) if run.state != "complete"}
    assert left == {"run-held": "interrupted", "run-young": "interrupted"}
    assert not (store.root / "work" / "run-old").exists()


def test_an_age_is_a_number_with_a_unit():
    assert (parse_age("90d"), parse_age("12h"), parse_age("2w")) == (
        timedelta(days=90), timedelta(hours=12), timedelta(days=14)
    )  # fmt: skip
    with pytest.raises(InputError, match="such as 90d"):
        parse_age("3 months")
