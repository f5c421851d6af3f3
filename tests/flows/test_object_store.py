"""A store at s3://bucket/prefix, on a server that speaks the protocol: the same tables as on a disk."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import duckdb
import pytest
import s3fs
import worlds
from moto.server import ThreadedMotoServer
from tables import assert_same
from tiny_runs import write_run
from typer.testing import CliRunner

from flows.cli import app
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.database import session
from storage.errors import InputError, StoreError
from storage.merging import plan_merges, remove_superseded, settle, write_merged
from storage.prompts import make_prompt, register_prompts
from storage.retention import delete_runs
from storage.settings import settings
from storage.soundness import Counts, check_tables
from storage.store import create_store, open_store
from storage.tables import write_part
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters
from tasks.corpus import CorpusParameters
from tasks.methods import MethodParameters

pytestmark = pytest.mark.e2e  # every file takes requests to a server: two minutes together

QUERIES = (QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An empty bucket on a loopback server; address, keys and a scratch folder stand in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("HEADWATER_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        settings.cache_clear()
        s3fs.S3FileSystem(use_listings_cache=False).mkdir("bucket")
        yield "s3://bucket"
    settings.cache_clear()
    server.stop()


def parameters(store: str, model, files, cluster="none") -> TraceParameters:
    return TraceParameters(
        store=store,
        model=ModelParameters(name=str(model)),
        queries=QUERIES,
        corpus=CorpusParameters(inputs=tuple(map(str, files))),
        candidates=CandidateParameters(
            filters=("bm25", "embedding"), top_k=20, unfiltered=5, where="metadata->>'colour' = 'red'"
        ),
        method=MethodParameters(rescore=5, beside=("identity", "bm25")),
        compute=ComputeParameters(precision="float32"),
        cluster=cluster,
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder, records = tmp_path_factory.mktemp("parts"), worlds.documents()
    return [worlds.write_jsonl(folder / f"{k}.jsonl", records[16 * k : 16 * k + 16]) for k in range(3)]


@pytest.fixture(scope="module")
def traced(bucket, gpt2, parts, prefect_db):
    trace(parameters(f"{bucket}/team/s", gpt2, parts))
    return open_store(f"{bucket}/team/s")


def ask(store, statement):
    return run_user_sql(store, statement)[1]


RELATIONS = (
    "documents", "sequences", "postings", "terms", "candidates", "influences", "layer_influences", "token_influences",
    "self_influences", "modules", "query_compressions", "run_queries", "filter_audits",
)  # fmt: skip


def test_the_tables_equal_those_of_a_store_on_a_disk(tmp_path, traced, gpt2, parts):
    trace(parameters(str(tmp_path / "s"), gpt2, parts))
    assert_equal_tables(traced, open_store(tmp_path / "s"))


def test_workers_of_a_cluster_write_the_same_tables_into_the_bucket(traced, bucket, gpt2, parts):
    trace(parameters(f"{bucket}/cluster/s", gpt2, parts, cluster="local"))
    assert_equal_tables(traced, open_store(f"{bucket}/cluster/s"))


def assert_equal_tables(one, other):
    """Row for row, and none of them empty."""
    tables = [{name: ask(store, f"select * from {name} order by all") for name in RELATIONS} for store in (one, other)]
    assert all(tables[0].values())
    assert_same(*tables)


def test_the_same_experiment_again_writes_nothing(traced, bucket, gpt2, parts):
    files = s3fs.S3FileSystem(use_listings_cache=False)
    before = files.find("bucket/team/s", detail=True)
    trace(parameters(f"{bucket}/team/s", gpt2, parts))
    after = files.find("bucket/team/s", detail=True)
    tables = [{name: facts["ETag"] for name, facts in found.items() if "/tables/" in name or "/factors/" in name}
              for found in (before, after)]  # fmt: skip
    assert tables[0] == tables[1]
    assert len(tables[0]) > 20
    assert not [name for name in after if "/work/" in name]


def test_sql_is_locked_to_the_tables_of_the_prefix(traced):
    for statement in (
        "select * from read_text('s3://bucket/team/s/store.json')",
        "select * from read_text('/etc/hostname')",
        "copy (select 1) to 's3://bucket/other.parquet'",
        "create table t as select 1",
    ):
        with pytest.raises(InputError):
            ask(traced, statement)


def test_any_client_with_a_filesystem_for_s3_opens_the_catalog(tmp_path, traced):
    files = s3fs.S3FileSystem()
    files.get_file("bucket/team/s/headwater.duckdb", str(tmp_path / "copy.duckdb"))
    with duckdb.connect(str(tmp_path / "copy.duckdb"), read_only=True) as connection:
        connection.register_filesystem(files)
        found = connection.execute("select sequence_id, influence from top_influences('otter', k := 3)").fetchall()
    assert found == ask(traced, "select sequence_id, influence from top_influences('otter', k := 3)")
    assert len(found) == 3


def test_the_command_line_takes_the_address_of_a_store(traced):
    statement = "select count(*) as n from sequences"
    found = CliRunner().invoke(app, ["sql", "--store", str(traced.root), "--format", "json", statement])
    assert json.loads(found.stdout) == [{"n": 48}]


def test_a_reader_sees_a_part_whole_or_not_at_all(bucket):
    """Parts of a megabyte appear one after another while SQL counts the rows of all that are there."""
    store, n = create_store(f"{bucket}/busy"), 200_000
    seen, errors, stop = [], [], threading.Event()

    def count():
        with session(store) as connection:
            while not stop.is_set():
                try:
                    seen.append(connection.execute("select count(*), sum(term_id) from stored.terms").fetchall()[0])
                except duckdb.Error as error:
                    errors.append(error)

    reader = threading.Thread(target=count)
    reader.start()
    while not seen:
        time.sleep(0.01)
    for k in range(10):
        write_part(store, "terms", f"p{k}", columns={"term_id": [1] * n, "document_frequency": list(range(n))})
    stop.set()
    reader.join()
    assert not errors
    assert {rows for rows, _ in seen} <= {k * n for k in range(11)}
    assert all(rows == (total or 0) for rows, total in seen)
    assert len({rows for rows, _ in seen}) > 2


def test_runs_are_merged_deleted_and_found_damaged_as_on_a_disk(bucket):
    store = create_store(f"{bucket}/kept")
    for k in range(3):
        write_run(store, f"run-{k}", n=4)
    (batch,) = plan_merges(store, 1 << 30, 2)
    write_merged(store, batch)
    settle(store, {run: (batch.home, size) for run, size in batch.n_bytes.items()})
    assert remove_superseded(store, timedelta(0)) == 24  # of each run: eight files, there was no filter audit
    delete_runs(store, ["run-1"], timedelta(0))
    rows = "select run_id, count(*), sum(influence) from influences group by run_id order by run_id"
    assert run_user_sql(store, rows)[1] == [("run-0", 4, 10.0), ("run-2", 4, 10.0)]
    path = store.relation("influences") / "merged" / "1.parquet"
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(bytes(data))
    found = {finding.what: finding.found for finding in check_tables(store, Counts())}
    assert found == {"tables/influences/merged/1.parquet": "other bytes than it was written with"}


def test_a_failed_part_leaves_nothing(bucket):
    store = create_store(f"{bucket}/failed")
    with pytest.raises(KeyError):
        write_part(store, "terms", "p", columns={"term_id": [1]})
    names = s3fs.S3FileSystem(use_listings_cache=False).find("bucket/failed/tables/terms")
    assert names == ["bucket/failed/tables/terms/schema.parquet"]


def test_a_missing_bucket_is_named(bucket):
    with pytest.raises(StoreError, match=r"s3://nowhere/s.*expected an object store that answers"):
        create_store("s3://nowhere/s")


def test_a_server_that_does_not_answer_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
        open_store("s3://bucket/team/s")
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_unknown_kind_of_place_is_refused():
    with pytest.raises(InputError, match="fsspec knows"):
        create_store("nowhere://bucket/s")


def test_of_many_who_submit_one_query_at_once_one_creates_it(bucket, monkeypatch):
    """All of them find the id unknown, so that only the object store's own condition tells them apart."""
    store = create_store(f"{bucket}/inbox")
    monkeypatch.setattr("storage.prompts.part_names", lambda store, relation: [])
    barrier = threading.Barrier(8)

    def submit(_: int) -> int:
        barrier.wait()
        return len(register_prompts(store, [make_prompt("p", " c", "same")]))

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(submit, range(8))) == [0] * 7 + [1]
    with session(store) as connection:
        assert connection.execute("select query_id from stored.queries").fetchall() == [("same",)]
