"""Precision is settled once, where the passes run, and what cannot be one precision is refused."""

from __future__ import annotations

import pytest
import torch

from storage.errors import MismatchError
from tasks import compute
from tasks.compute import ComputeParameters, Processor, device_of, dtype_of, settle

GPU, CPU = Processor("cuda", "bfloat16"), Processor("cpu", "float32")
HERE = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}


@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("asked", "processors", "settled"),
    [
        ("auto", {"a": GPU, "b": GPU}, "bfloat16"),
        ("auto", {"a": CPU}, "float32"),
        ("float32", {"a": GPU, "b": CPU}, "float32"),
        ("bfloat16", {"a": GPU}, "bfloat16"),
        ("bfloat16", {}, "bfloat16"),
        ("float32", {}, "float32"),
    ],
)
def test_precision_is_what_the_workers_compute_in_whatever_this_machine_would(
    asked, processors, settled, native, monkeypatch
):
    monkeypatch.setattr(compute, "native_precision", lambda device: native)
    parameters = ComputeParameters(precision=asked, batch_size=3)
    assert settle(parameters, processors) == ComputeParameters(precision=settled, batch_size=3)


def test_without_a_cluster_it_is_what_this_machine_multiplies_natively(monkeypatch):
    for native in HERE:
        monkeypatch.setattr(compute, "native_precision", lambda device, native=native: native)
        found = settle(ComputeParameters(), {})
        assert found.precision != "auto"
        monkeypatch.setattr(compute, "native_precision", lambda device, native=native: HERE[native])  # on a worker
        assert dtype_of(found) == native


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_workers_among_which_one_precision_means_two_things_are_refused(asked):
    with pytest.raises(MismatchError, match=r"found 1 of 2 that do not, the first b\. Use --precision float32"):
        settle(ComputeParameters(precision=asked), {"a": GPU, "b": CPU})


def test_workers_that_would_emulate_what_is_asked_are_refused():
    with pytest.raises(MismatchError, match="1 of 1 that do not"):
        settle(ComputeParameters(precision="bfloat16"), {"a": CPU})


def test_a_run_s_device_is_that_of_its_workers():
    assert device_of({"a": GPU, "b": CPU}) == "cpu, cuda"
    assert device_of({}) == str(compute.device())
