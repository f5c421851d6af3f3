"""What a run shows in the Prefect UI, read back from a real server: names, rings, pages, logs, next steps."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jobs import fill_and_tell, tell_and_fail
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Failed, Running, Scheduled, State

from flows import runs as runs_of_a_store
from flows.cluster import open_workers
from flows.outcome import next_step
from flows.runs import flow_runs
from storage.catalog import run_user_sql
from storage.errors import InputError
from storage.store import create_store, open_store
from tasks.cost import Cost, measuring
from tasks.fanout import fan_out

ROOT = Path(__file__).parents[2]
HEADWATER = Path(sys.executable).parent / "headwater"
STAGES = ["corpus", "lexical index", "candidates", "factors", "query gradients", "scores", "token scores", "results",
          "filter audit", "report"]  # fmt: skip
RINGS = {"corpus", "lexical index", "candidates by bm25", "covariances", "eigenbases", "eigenvalues",
         "query gradients", "scores", "token scores"}  # fmt: skip
QUERY = ("--prompt", "The otter went to the", "--completion", " harbour.")


class Runs:
    """Commands in processes of their own, and what the server then knows of them."""

    def __init__(self, folder: Path, url: str) -> None:
        from prefect.client.orchestration import get_client

        self.folder, self.client = folder, get_client(sync_client=True)
        self.environment = {
            **os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
        }  # fmt: skip

    def start(self, *command: object, **environment: str) -> subprocess.CompletedProcess:
        """Run a command outside the project's folder, whose pyproject.toml Prefect would read."""
        return subprocess.run(
            [*map(str, command)], cwd=self.folder, env=self.environment | environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def logs(self, run_id) -> list:
        """Logs of a flow run, once the server has written them."""
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

        chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        for _ in range(50):
            found = self.client.read_logs(log_filter=chosen, limit=200)
            if any(log.message.startswith("Finished in state") and not log.task_run_id for log in found):
                return found
            time.sleep(0.2)
        raise AssertionError(f"no last line in {[log.message for log in found]}")

    def artifacts(self, run_id) -> list:
        """Artifacts of a flow run and of its tasks."""
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        return self.client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])), limit=200
        )

    def last(self):
        """The newest flow run."""
        from prefect.client.schemas.sorting import FlowRunSort

        newest = self.client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=50)
        return max(newest, key=lambda run: run.created)


@pytest.fixture(scope="module")
def runs(prefect_db, tmp_path_factory) -> Runs:
    from prefect.settings import PREFECT_API_URL

    return Runs(tmp_path_factory.mktemp("monitored"), PREFECT_API_URL.value())


@pytest.fixture(scope="module")
def traced(runs, gpt2, corpus):
    """One trace by the command: its flow run and what the command printed."""
    done = runs.start(
        HEADWATER, "trace", "--store", runs.folder / "s", "--model", gpt2, "--corpus", corpus, *QUERY,
        "--cluster", "none", "--precision", "float32", "--rescore", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return runs.last(), done


def test_task_runs_are_called_as_the_stages_are(runs, traced):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    run, _ = traced
    found = runs.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert [t.name for t in sorted(found, key=lambda t: t.start_time)] == STAGES
    assert run.state.is_completed()


def test_every_long_stage_has_a_ring_on_its_node_and_it_is_full(runs, traced):
    rings = [a for a in runs.artifacts(traced[0].id) if a.type == "progress"]
    assert {a.description for a in rings} == RINGS
    assert all(a.task_run_id for a in rings)
    assert {json.loads(a.data) if isinstance(a.data, str) else a.data for a in rings} == {100}


def test_the_page_of_a_run_has_its_sequences_picture_costs_and_sql(runs, traced):
    (page,) = [a for a in runs.artifacts(traced[0].id) if a.type == "markdown"]
    store = open_store(runs.folder / "s")
    (asked,) = run_user_sql(store, "select query_id, completion from queries")[1]
    best = run_user_sql(store, f"select sequence_id, document_id from top_influences('{asked[0]}', k := 5)")[1]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"(?m)^\| \d+ \|.*$", page.data)]
    assert [row[4] for row in rows] == [document for _, document in best]
    (image,) = re.findall(r"!\[[^]]*\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", page.data)
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert f"select * from token_heatmap('{asked[0]}', {best[0][0]}, run := '{page.key[10:]}');" in page.data
    costs = dict(re.findall(r"(?m)^\| ([a-z ]+) \| [\d.,]+ \| [^|]* \| (\d+) MB \|$", page.data))
    # Python with torch loaded takes hundreds of megabytes; the report itself is not over when it is written.
    assert list(costs) == STAGES[:-1]
    assert all(100 <= int(memory) < 20_000 for memory in costs.values())


def test_logs_of_a_command_reach_the_server_while_its_terminal_stays_quiet(runs, traced):
    run, done = traced
    ours = [log for log in runs.logs(run.id) if log.name == "tasks.stage"]
    assert [log.message.split(":")[0] for log in sorted(ours, key=lambda log: log.timestamp)] == STAGES
    assert all(log.task_run_id for log in ours)
    assert done.stderr == ""
    assert "tasks.stage" not in done.stdout


def test_a_failed_run_says_its_next_step_in_state_page_and_log(runs, traced, gpt2):
    asked = ("--prompt", "otter " * 60, "--completion", " harbour.", "--cluster", "none")
    done = runs.start(HEADWATER, "trace", "--store", runs.folder / "s", "--model", gpt2, *asked)
    run, step = runs.last(), "Shorten the prompt from its beginning."
    assert done.returncode == 1
    assert step in done.stderr
    assert run.state.is_failed()
    assert run.state.message.endswith(step)
    (page,) = [a for a in runs.artifacts(run.id) if a.key == "failed-trace"]
    assert "expected at most 48 tokens" in page.data
    assert "**Next.** Shorten the prompt from its beginning" in page.data
    assert any(log.message.startswith(f"next step: {step}") for log in runs.logs(run.id))


def test_logs_arrive_from_the_process_that_a_worker_starts(runs, traced):
    """A process worker starts Prefect's engine with a run's id; here the id comes from a deployment as there."""
    from flows.index import index_corpus

    flow_id = runs.client.create_flow(index_corpus)
    deployment = runs.client.create_deployment(
        flow_id=flow_id, name="worker", path=str(ROOT), entrypoint="flows/index.py:index_corpus",
        parameters={"store": str(runs.folder / "s"), "cluster": "none"},
    )  # fmt: skip
    run = runs.client.create_flow_run_from_deployment(deployment)
    given = {"PREFECT__FLOW_RUN_ID": str(run.id), "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks"}
    entrypoint = f"{ROOT}/flows/index.py:index_corpus"
    done = runs.start(sys.executable, "-m", "prefect.flow_engine", entrypoint, **given)
    assert done.returncode == 0, done.stderr
    ours = [log.message for log in runs.logs(run.id) if log.name == "tasks.stage"]
    assert len(ours) == 1, ours  # once, though two ways lead a log there
    assert ours[0].startswith("lexical index: ")


@pytest.mark.e2e
def test_what_jobs_on_dask_workers_log_and_take_is_known_to_their_stage(caplog):
    sizes, cost = [300 * 2**20, 10], Cost()
    with open_workers("local", 2) as workers, measuring(cost):
        assert fan_out(workers.lexical, fill_and_tell, sizes, "noise") == sizes
        inside = cost.memory_bytes
    told = [record.getMessage().split() for record in caplog.records if record.name == "tasks.somewhere"]
    assert sorted(int(words[0]) for words in told) == sorted(sizes)
    assert str(os.getpid()) not in [words[-1] for words in told]
    assert inside >= 300 * 2**20


@pytest.mark.e2e
def test_what_a_job_logged_before_it_failed_is_known_too(caplog):
    with open_workers("local", 2) as workers:
        for name, kind in (("foreseen", InputError), ("other", ZeroDivisionError)):
            with pytest.raises(kind) as caught:
                fan_out(workers.lexical, tell_and_fail, [name] * 2, "noise")
            assert f"before {name}" in [record.getMessage() for record in caplog.records]
            assert "tell_and_fail" in str(caught.getrepr())  # where it was on the worker
            assert "headwater_records" not in vars(caught.value)


def test_the_status_shows_what_runs_however_long_and_the_latest_failures(prefect_db, tmp_path, monkeypatch):
    """The server answers with so many runs at most; here three."""
    monkeypatch.setattr(runs_of_a_store, "ASKED", 3)
    store = create_store(tmp_path / "s")
    today = datetime.now(UTC)

    @flow
    def work(parameters):
        pass

    with get_client(sync_client=True) as client:

        def make(state: State, hours_ago: float, place=store.root) -> str:
            asked = {"parameters": {"store": str(place)}}
            planned = Scheduled(scheduled_time=today - timedelta(hours=hours_ago))
            made = client.create_flow_run(work, parameters=asked, state=planned)
            client.set_flow_run_state(made.id, state, force=True)
            return str(made.id)

        # Ahead of now, so that they are the latest whatever failed in the tests before.
        failed = [make(Failed(), -hours) for hours in (1, 2, 3, 4)]
        long = make(Running(), 70)
        make(Running(), 1, tmp_path / "another")
    shown, trouble = flow_runs(store)
    assert trouble is None
    assert [run["id"] for run in shown] == [long, failed[3], failed[2], failed[1]]


def test_memory_that_was_freed_before_the_end_counts():
    before, cost = Cost(), Cost()
    with measuring(before):
        pass
    with measuring(cost):
        held = b"1" * (400 * 2**20)
        time.sleep(0.2)
        del held
    assert cost.memory_bytes - before.memory_bytes > 300 * 2**20


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InputError("x", expected="a", found="b", remedy="Rename it."), "Rename it. Then run it again"),
        (MemoryError(), "smaller batch size"),
        (KeyError("y"), "report it"),
        (KeyboardInterrupt(), "gave out"),
    ],
)
def test_every_error_has_a_next_step(error, says):
    assert says in next_step(error)
