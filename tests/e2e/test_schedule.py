"""The system on a schedule: runs that appear by themselves, the inbox, collisions, turns on the GPU, the UI, an end."""

from __future__ import annotations

import signal
import socket
from datetime import datetime

import httpx
import psutil
import pytest
from e2e.systems import ROOT, System, text_of, wait_for
from PIL import Image

from storage.catalog import run_user_sql
from storage.store import open_store

pytestmark = pytest.mark.e2e


def ask(system: System, statement: str) -> list[tuple]:
    return run_user_sql(open_store(system.store), statement)[1]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=None)  # UTC, as in the store


def test_a_scheduled_run_appears_by_itself_and_completes(system):
    def completed() -> list[dict]:
        return [r for r in system.runs("trace-pending") if r["auto_scheduled"] and r["state_name"] == "Completed"]

    (run, *_) = wait_for(completed, 150, "scheduled run")
    assert run["created_by"]["type"] == "SCHEDULE"

    def logged() -> bool:  # logs come in batches, some seconds after the run has ended
        logs = system.post("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}).json()
        return "0 queries wait" in [entry["message"] for entry in logs if entry["name"] == "flows.pending"]

    wait_for(logged, 30, "logs")


def test_the_events_of_a_scheduled_run_follow_one_that_was_never_sent(system):
    """Pins Prefect: so its automations hear of such a run up to 15 minutes late; see deployments/automations.yaml."""
    run = next(r for r in system.runs("trace-pending") if r["auto_scheduled"] and r["state_name"] == "Completed")
    about = {"any_resource": {"id": [f"prefect.flow-run.{run['id']}"]}, "order": "ASC"}

    def events() -> list[dict]:
        found = system.post("/events/filter", filter=about, limit=50).json()["events"]
        return found if any(e["event"] == "prefect.flow-run.Completed" for e in found) else []

    found = wait_for(events, 30, "events")
    (pending,) = [e for e in found if e["event"] == "prefect.flow-run.Pending"]
    assert pending["follows"] not in {e["id"] for e in found}


def test_a_query_submitted_while_a_run_goes_on_is_answered_by_the_next_one(system):
    system.submit("many", *(f"first-{k}" for k in range(150)))

    def going_on() -> dict | None:
        """The run that took the many, once it has read the inbox."""
        for run in system.runs("trace-pending"):
            named = {"flow_runs": {"id": {"any_": [run["id"]]}}, "task_runs": {"name": {"any_": ["screening"]}}}
            if run["state_name"] == "Running" and system.post("/task_runs/filter", **named).json():
                return run
        return None

    first = wait_for(going_on, 150, "run that reads the inbox")
    system.submit("late", "late")
    status = system.status()
    assert system.run(first["id"])["state_name"] == "Running"  # else this test has shown nothing
    assert any(run["id"] == first["id"] and run["state"] == "Running" for run in status["flow_runs"])
    assert {"query_id": "late", "state": "waiting"}.items() <= next(
        q for q in status["open"] if q["query_id"] == "late"
    ).items()

    wait_for(lambda: system.status()["queries"]["waiting"] == 0, 240, "answer")
    answered = dict(ask(system, "select query_id, run_id from query_states where state = 'answered'"))
    assert set(answered) == {"late", *(f"first-{k}" for k in range(150))}
    runs = {answered[f"first-{k}"] for k in range(150)}
    assert len(runs) == 3  # 64, 64 and 22 to a pass
    assert answered["late"] not in runs
    ((started,),) = ask(system, f"select started_at from runs where run_id = '{answered['late']}'")

    def next_one() -> list[dict]:
        ended = [r for r in system.runs("trace-pending") if r["state_name"] == "Completed"]
        return [r for r in ended if moment(r["start_time"]) < started < moment(r["end_time"])]

    (second,) = wait_for(next_one, 60, "end of the run that answered it")
    assert second["auto_scheduled"]
    assert moment(second["start_time"]) > moment(system.run(first["id"])["end_time"])


def test_a_run_that_would_collide_is_cancelled(system):
    """Pins Prefect: with CANCEL_NEW the worker starts no process for it."""
    limit = system.deployment("trace-pending/trace-pending")["global_concurrency_limit"]["name"]
    system.take_slot(limit)
    try:
        before = {run["id"] for run in system.runs("trace-pending") if run["state_name"] == "Cancelled"}

        def cancelled() -> list[dict]:
            ended = [run for run in system.runs("trace-pending") if run["state_name"] == "Cancelled"]
            return [run for run in ended if run["id"] not in before]

        (run, *_) = wait_for(cancelled, 150, "cancelled run")
    finally:
        system.leave_slot(limit)
    assert run["infrastructure_pid"] is None
    assert run["state"]["message"] == "Deployment concurrency limit reached."


def test_one_flow_at_a_time_drives_the_gpu(system):
    parameters = {
        "store": str(system.store), "model": {"name": str(system.model)}, "cluster": "none",
        "queries": [{"prompt": "The lynx went to the", "completion": " bridge.", "query_id": "by hand"}],
    }  # fmt: skip
    system.take_slot("headwater-gpu")
    try:
        deployment = system.deployment("trace/on-demand")["id"]
        made = system.post(f"/deployments/{deployment}/create_flow_run", parameters={"parameters": parameters})
        run_id = made.json()["id"]

        def waits() -> list[dict]:
            logs = system.post("/logs/filter", logs={"flow_run_id": {"any_": [run_id]}}).json()
            return [entry for entry in logs if "waiting until another flow leaves the GPU" in entry["message"]]

        wait_for(waits, 120, "word of waiting in the run's log")
        assert system.run(run_id)["state_name"] == "Running"
    finally:
        system.leave_slot("headwater-gpu")
    wait_for(lambda: system.run(run_id)["state_name"] == "Completed", 120, "completion")


def traced(system: System) -> dict:
    return next(run for run in system.runs("trace") if run["state_name"] == "Completed")


def test_the_ui_shows_the_graph_of_a_run(system, page):
    run = traced(system)
    words = text_of(page(f"{system.site}/v2/runs/flow-run/{run['id']}", "run"))
    assert run["name"] in words
    for expected in ("Completed", "10 Task runs", "Beginning subflow run", "token scores:"):
        assert expected in words
    # The graph is drawn on a canvas, which has no words: its bars are green, and there are ten of them.
    picture = Image.open(ROOT / "build" / "screenshots" / "run.png").convert("RGB").crop((260, 110, 1480, 510))
    green = [pixel for pixel in picture.get_flattened_data() if pixel[1] > 130 > 90 > max(pixel[0], pixel[2])]
    assert len(green) > 5000


def test_the_ui_shows_the_artifact_of_a_run(system, page):
    run = traced(system)
    found = system.post("/artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}}, limit=50).json()
    (artifact,) = [a for a in found if a["type"] == "markdown"]
    words = text_of(page(f"{system.site}/v2/artifacts/artifact/{artifact['id']}", "artifact"))
    best = ask(
        system,
        "select d.document_id from influences i join runs r using (run_id) join sequences s using (sequence_id) "
        f"join documents d using (document_id) where r.run_id = '{artifact['key'].removeprefix('headwater-')}' "
        "and i.method = r.method and i.influence_rank = 1 order by i.query_id limit 1",
    )
    for expected in (artifact["key"], "select * from top_influences(", best[0][0]):
        assert expected in words


def test_the_form_of_a_deployment_has_units_and_bounds_and_the_server_refuses_nonsense(system, page):
    deployment = system.deployment("trace-pending/trace-pending")
    batch = deployment["parameter_openapi_schema"]["definitions"]["PendingParameters"]["properties"]["batch"]
    assert (batch["minimum"], batch["maximum"]) == (1, 1024)
    words = text_of(page(f"{system.site}/v2/deployments/deployment/{deployment['id']}/run", "form"))
    assert batch["description"] in words
    good = deployment["parameters"]["parameters"]
    for change, said in (({"batch": 0}, "batch"), ({"bathc": 3}, "bathc"), ({"model": {}}, "name")):
        refused = system.post(
            f"/deployments/{deployment['id']}/create_flow_run", parameters={"parameters": {**good, **change}}
        )
        assert 400 <= refused.status_code < 500, change
        assert said in refused.text


def test_nothing_listens_beyond_this_machine(system):
    family = [psutil.Process(system.process.pid)]
    family += family[0].children(recursive=True)
    listening = [c.laddr for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert system.port in {address.port for address in listening}
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


def test_ctrl_c_ends_all_of_it(system):
    family = psutil.Process(system.process.pid).children(recursive=True)
    assert len(family) >= 2
    assert system.end(signal.SIGINT) == 0
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{system.site}/api/health")
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("127.0.0.1", system.port))
