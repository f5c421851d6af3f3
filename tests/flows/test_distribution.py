"""A cluster of real processes: what runs on a worker with the resource GPU=1, what on one without, what comes out."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import worlds
from distributed import Client, get_task_stream
from numpy.testing import assert_allclose

from flows.cluster import open_workers
from flows.parameters import ModelParameters, QueryParameters, TraceParameters
from flows.trace import trace
from storage.catalog import run_user_sql
from storage.errors import InputError, MismatchError
from storage.store import open_store
from tasks.compute import ComputeParameters, dtype_of, settle
from tasks.corpus import CorpusParameters
from tasks.methods import MethodParameters

pytestmark = [pytest.mark.usefixtures("prefect_db"), pytest.mark.e2e]

DASK = Path(sys.executable).parent / "dask"
LEXICAL = {"corpus", "lexical-index", "candidates-by-bm25"}
MODEL = {"covariances", "eigenbases", "eigenvalues", "query-gradients", "scores", "token-scores"}
TABLES = {
    "sequences": "sequence_id",
    "postings": "term_id, sequence_id",
    "candidates": "query_id, filter, sequence_id",
    "influences": "query_id, method, sequence_id",
    "self_influences": "sequence_id",
    "layer_influences": "query_id, sequence_id, module",
    "token_influences": "query_id, sequence_id, layer, position",
}


class Cluster:
    """A scheduler on loopback and the workers that are started for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.processes = folder, folder / "scheduler.json", []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        for _ in range(300):
            if self.file.exists() and self.file.read_text().strip():
                break
            time.sleep(0.1)
        self.address = json.loads(self.file.read_text())["address"]

    def add_worker(self, name: str, *options: str) -> None:
        self._start("worker", "--host", "127.0.0.1", "--nthreads", "1", "--name", name, *options)

    def _start(self, kind: str, *options: str) -> None:
        command = [str(DASK), kind, "--scheduler-file", str(self.file), "--no-dashboard", *options]
        # Not in the project's folder: workers find headwater because it is installed.
        with open(self.folder / f"{kind}-{len(self.processes)}.log", "w") as log:
            self.processes.append(subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log))

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.add_worker("gpu", "--resources", "GPU=1")
        made.add_worker("cpu")
        with Client(made.address) as client:
            client.wait_for_workers(2, timeout=90)
        yield made
    finally:
        made.stop()


def parameters(store: Path, model: Path, files: list[Path], cluster: str) -> TraceParameters:
    return TraceParameters(
        store=str(store),
        model=ModelParameters(name=str(model)),
        queries=(QueryParameters(prompt="The otter went to the", completion=" harbour.", query_id="otter"),),
        corpus=CorpusParameters(inputs=tuple(map(str, files))),
        compute=ComputeParameters(precision="float32"),
        method=MethodParameters(rescore=4, beside=("identity", "bm25")),
        cluster=cluster,
    )


def table(store: Path, name: str, order: str) -> list[tuple]:
    return run_user_sql(open_store(store), f"select * from {name} order by {order}")[1]


def require_equal(far: list[tuple], near: list[tuple]) -> None:
    """Row for row; sums in float32 differ in their last digits where a worker has one thread and this process two."""
    assert len(far) == len(near) > 0
    for ours, theirs in zip(zip(*far, strict=True), zip(*near, strict=True), strict=True):
        known = [value for value in theirs if value is not None]
        assert [value is None for value in ours] == [value is None for value in theirs]
        if known and isinstance(known[0], float):
            found = [value for value in ours if value is not None]
            assert_allclose(found, known, rtol=0, atol=2e-6 * max(map(abs, known)))
        else:
            assert ours == theirs


def test_gpu_work_runs_on_gpu_workers_lexical_work_on_the_others_and_the_tables_are_those_of_one_process(
    cluster, tmp_path, gpt2
):
    records = worlds.documents()
    files = [worlds.write_jsonl(tmp_path / f"{k}.jsonl", records[k::3]) for k in range(3)]
    with Client(cluster.address) as client, get_task_stream(client=client) as ran:
        run_id = trace(parameters(tmp_path / "far", gpt2, files, cluster.address))
        names = {w["name"] for w in client.scheduler_info()["workers"].values()}
        name_of = {address: w["name"] for address, w in client.scheduler_info()["workers"].items()}
    assert names == {"gpu", "cpu"}
    where = defaultdict(set)
    for job in ran.data:
        where[re.sub(r"-[0-9a-f]{8}-.*", "", job["key"])].add(name_of[job["worker"]])
    assert {key: where[key] for key in LEXICAL} == {key: {"cpu"} for key in LEXICAL}
    assert {key: where[key] for key in MODEL} == {key: {"gpu"} for key in MODEL}
    assert where.keys() == LEXICAL | MODEL
    assert trace(parameters(tmp_path / "near", gpt2, files, "none")) == run_id
    for name, order in TABLES.items():
        require_equal(*(table(tmp_path / place, name, order) for place in ("far", "near")))


def test_a_worker_that_takes_the_place_of_another_gets_its_lexical_work(cluster):
    with open_workers(cluster.address, 2) as workers:
        client = workers.lexical()
        (old,) = [a for a, w in client.scheduler_info()["workers"].items() if w["name"] == "cpu"]
        client.restart_workers([old], timeout=60)
        (new,) = [a for a, w in client.scheduler_info()["workers"].items() if w["name"] == "cpu"]
        assert new != old
        # The worker may still be loading: the job waits for its resource, and is woken when it comes.
        asked = client.submit(abs, -1, resources=dict(workers.lexical_resources), key="waiting")
        assert asked.result(timeout=60) == 1
        assert client.who_has(asked)["waiting"] == (new,)


def test_a_worker_with_other_numerics_is_refused(cluster):
    with Client(cluster.address) as client:
        (cpu,) = [a for a, w in client.scheduler_info()["workers"].items() if w["name"] == "cpu"]
        digests = "storage.digests"
        client.run(lambda: setattr(sys.modules[digests], "code_revision", lambda: "another"), workers=[cpu])
        with pytest.raises(MismatchError, match=rf"Dask worker {cpu}: expected code revision \w+, as here, found an"):
            open_workers(cluster.address, 2).__enter__()
        client.restart_workers([cpu], timeout=60)


def test_the_precision_is_what_the_workers_with_the_model_multiply_natively(cluster):
    """As on a CPU that hands its passes to GPUs: the worker is made to say the opposite of this machine."""
    with Client(cluster.address) as client:
        (gpu,) = [a for a, w in client.scheduler_info()["workers"].items() if w["name"] == "gpu"]
        here = settle(ComputeParameters(), {}).precision
        other = {"float32": torch.bfloat16, "bfloat16": torch.float32}[here]
        client.run(lambda: setattr(importlib.import_module("tasks.compute"), "native_precision", lambda _: other),
                   workers=[gpu])  # fmt: skip
        try:
            with open_workers(cluster.address, 2) as workers:
                assert set(workers.processors) == {gpu}
                assert dtype_of(settle(ComputeParameters(), workers.processors)) == other
        finally:
            client.restart_workers([gpu], timeout=60)


def test_a_scheduler_without_workers_and_a_worker_of_several_threads_are_refused(tmp_path):
    made = Cluster(tmp_path)
    try:
        with pytest.raises(InputError, match="expected workers, found none"), open_workers(made.address, 2):
            pass
        made.add_worker("wide", "--nthreads", "2")
        with Client(made.address) as client:
            client.wait_for_workers(1, timeout=60)
        with pytest.raises(InputError, match="expected one thread, found 2"), open_workers(made.address, 2):
            pass
    finally:
        made.stop()
