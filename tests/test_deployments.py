"""The deployment file names flows that exist, by the entrypoints that a worker will import."""

from __future__ import annotations

from pathlib import Path

import yaml
from prefect.flows import load_flow_from_entrypoint

ROOT = Path(__file__).parents[1]


def test_every_deployment_leads_to_a_flow_whose_parameters_have_a_form(monkeypatch):
    monkeypatch.chdir(ROOT)
    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    files = {d["entrypoint"].split(":")[0].removeprefix("flows/") for d in deployments}
    assert files == {"trace.py", "ingest.py", "fit.py", "self_influence.py"}
    for deployment in deployments:
        form = load_flow_from_entrypoint(deployment["entrypoint"]).parameters
        assert "description" in str(form), deployment["entrypoint"]
        assert form.required == ["parameters"]


def test_unknown_and_impossible_parameters_are_refused():
    import pytest
    from pydantic import ValidationError

    from flows.parameters import TraceParameters

    good = {"store": "s", "model": {"name": "m"}, "queries": [{"prompt": "p", "completion": "c"}]}
    assert TraceParameters.model_validate(good).method.rank == 32
    undamped = {"method": {"damping": {"relative": None}}}
    for changed in ({"method": {"rank": 0}}, {"batch": 3}, {"queries": []}, undamped):
        with pytest.raises(ValidationError):
            TraceParameters.model_validate({**good, **changed})
