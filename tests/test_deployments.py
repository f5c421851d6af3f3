"""The deployment files: flows that exist, forms with units and bounds, schedules whose collisions are cancelled."""

from __future__ import annotations

import runpy
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect.flows import load_flow_from_entrypoint
from prefect.settings.models.server.concurrency import ServerConcurrencySettings
from pydantic import ValidationError

from flows.parameters import EvaluationParameters, PendingParameters, RefreshParameters, TraceParameters
from storage.inbox import submit
from storage.prompts import make_prompt
from storage.store import open_store

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
NO_BOUND = {"embedding_layer"}  # counted from either end of a model that is not known yet


@pytest.fixture(params=DEPLOYMENTS, ids=lambda d: d["name"])
def deployment(request, monkeypatch):
    monkeypatch.chdir(ROOT)
    return request.param


def fields(schema: dict) -> Iterator[tuple[str, dict]]:
    """Every field of a form, however deep: its name and what the form knows of it."""
    for part in (schema, *schema.get("definitions", {}).values()):
        yield from part.get("properties", {}).items()


def test_every_flow_has_a_deployment():
    files = {d["entrypoint"].split(":")[0].removeprefix("flows/") for d in DEPLOYMENTS}
    flows = {p.name for p in (ROOT / "flows").glob("*.py") if "\n@flow(" in p.read_text(encoding="utf-8")}
    assert files == flows - {"demo.py", "index.py"}  # the demo is for a terminal, the index is part of two others


def test_the_form_describes_every_field_and_bounds_every_number(deployment):
    form = load_flow_from_entrypoint(deployment["entrypoint"]).parameters.model_dump()
    assert form["required"] == ["parameters"]
    for name, field in fields(form):
        is_model = "$ref" in str(field)
        assert is_model or name == "parameters" or field.get("description"), name
        kinds = field.get("anyOf", [field])
        for kind in kinds:
            if kind.get("type") in {"integer", "number"} and name not in NO_BOUND:
                assert {"minimum", "exclusiveMinimum"} & kind.keys(), (name, field)


def test_a_schedule_is_complete_and_its_collisions_are_cancelled(deployment):
    if not deployment.get("schedules"):
        assert deployment["concurrency_limit"] == 1
        return
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    filled = flow.validate_parameters(deployment["parameters"])["parameters"]
    assert filled.store == "{{ $HEADWATER_STORE }}"


def test_what_a_deployed_flow_logs_belongs_to_our_packages_under_whatever_name_it_is_loaded(deployment):
    """Pins Prefect: a worker imports a flow's file by its path, so that __name__ lacks the package."""
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert not flow.fn.__module__.startswith("flows.")
    log = flow.fn.__globals__.get("log")
    assert log is None or log.name == f"flows.{Path(deployment['entrypoint'].split(':')[0]).stem}"


def test_slots_outlive_the_server():
    """Pins Prefect: leases are kept in memory unless told otherwise, and a slot whose lease is lost is never free."""
    assert ServerConcurrencySettings.model_fields["lease_storage"].default.endswith(".memory")
    found = runpy.run_path(str(ROOT / "deployments" / "up.py"))["_environment"]("http://127.0.0.1:4200/api", None)
    assert found["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")


def test_a_port_that_somebody_listens_on_is_refused_before_anything_is_deployed():
    up = runpy.run_path(str(ROOT / "deployments" / "up.py"))
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as other:
            other.bind((host, 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(SystemExit, match=f"port {port}: expected one that is free.*in use"):
                up["_require_free"](host, port)
        up["_require_free"](host, port)


def test_queries_can_be_handed_in_before_the_first_look_at_the_folder(tmp_path):
    make_store = runpy.run_path(str(ROOT / "deployments" / "up.py"))["_make_store"]
    make_store(str(tmp_path / "store"))
    asked = make_prompt("The otter went to the", " harbour.")
    assert submit(open_store(tmp_path / "store"), [asked]) == [asked]
    make_store(str(tmp_path / "store"))  # the next start finds it
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="expected a headwater store or an empty place"):
        make_store(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("host", "api"),
    [
        ("127.0.0.1", "http://127.0.0.1:4200/api"),
        ("0.0.0.0", "http://127.0.0.1:4200/api"),
        ("::1", "http://[::1]:4200/api"),
        ("::", "http://[::1]:4200/api"),
    ],
)
def test_clients_on_this_machine_find_a_server_at_any_address(host, api):
    assert runpy.run_path(str(ROOT / "deployments" / "up.py"))["_api"](host, 4200) == api


@pytest.mark.parametrize(
    "name", ["headwater fails again and again", "headwater takes too long", "headwater lost a run"]
)
def test_the_automations_are_ones_that_prefect_takes(name):
    found = yaml.safe_load((ROOT / "deployments" / "automations.yaml").read_text())["automations"]
    (automation,) = [a for a in found if a["name"] == name]
    assert AutomationCore.model_validate(automation).actions


@pytest.mark.parametrize(
    ("model", "good", "wrong"),
    [
        (
            TraceParameters,
            {"store": "s", "model": {"name": "m"}, "queries": [{"prompt": "p", "completion": "c"}]},
            [{"method": {"rank": 0}}, {"batch": 3}, {"queries": []}, {"method": {"damping": {"relative": None}}}],
        ),
        (
            RefreshParameters,
            {"store": "s", "model": {"name": "m"}, "folder": "f"},
            [{"settle": -1}, {"folder": ""}, {"cut": {"sequence_length": 1}}, {"terms": "letters"}],
        ),
        (
            PendingParameters,
            {"store": "s", "model": {"name": "m"}},
            [{"batch": 0}, {"batch": 2000}, {"most": 0}, {"model": None}, {"queries": []}],
        ),
        (EvaluationParameters, {"store": "s"}, [{"runs": 0}, {"store": ""}, {"run": "latest"}]),
    ],
)
def test_unknown_and_impossible_parameters_are_refused(model, good, wrong):
    model.model_validate(good)
    for changed in wrong:
        with pytest.raises(ValidationError):
            model.model_validate({**good, **changed})
