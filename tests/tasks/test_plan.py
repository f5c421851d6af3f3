"""The plan of `check`: bytes against counts by hand, refusals against machines that are too small."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig

from storage.checkpoints import empty_model, load_model
from tasks import plan as module
from tasks.compute import ComputeParameters
from tasks.factors import FitParameters
from tasks.influence.modules import select_modules
from tasks.machine import GIB
from tasks.plan import PlanRefused, Rates, Workload, plan, require_fit, require_room

WORK = Workload(fit_sequences=100, queries=2, candidates=50, rescored=20, positions=40, longest=48, rank=8)
RATES = Rates(1e-3, 2e-3, 1e9, 5e8, 0.1, bytes_per_token=1000)


def stages(path, work=WORK, **fit):
    modules = select_modules(load_model(path), "mlp")
    found = plan(path, modules, work, FitParameters(**fit), ComputeParameters(precision="float32"), RATES)
    return {stage.stage: stage for stage in found}


def test_an_empty_model_has_the_modules_of_the_real_one(gpt2):
    empty, real = empty_model(gpt2), load_model(gpt2)
    assert all(p.is_meta for p in empty.parameters())
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert select_modules(empty, "mlp") == select_modules(real, "mlp")


def test_bytes_are_those_of_the_matrices(gpt2):
    # Two layers of c_fc [64, 16 + 1] and c_proj [16, 64 + 1], float32.
    sides = 2 * ((64**2 + 17**2) + (16**2 + 65**2))
    lambdas = 2 * (64 * 17 + 16 * 65)
    weights = sum(p.numel() for p in load_model(gpt2).parameters())
    found = stages(gpt2)
    assert found["covariances"].disk_bytes == 4 * sides
    assert found["covariances"].memory_bytes == 4 * weights + 4096 * 1000 + 4 * sides
    assert found["eigenbases"].disk_bytes == 4 * (sides + lambdas)
    assert found["eigenvalues"].disk_bytes == 4 * lambdas
    assert found["scores"].disk_bytes == 4 * WORK.candidates * 4
    assert found["covariances"].tokens == found["eigenvalues"].tokens == 100 * 40
    assert found["scores"].tokens == 50 * 40


def test_every_job_of_a_fit_leaves_its_sums_on_disk_until_the_end(gpt2):
    few, many, more = (
        stages(gpt2, Workload(n, 2, 50, 20, 40, 48, 8))["covariances"].disk_bytes for n in (1024, 10_240, 10**6)
    )
    assert many == 10 * few
    assert more == 16 * few


def test_two_blocks_halve_the_covariances_on_disk(gpt2):
    whole, halves = (stages(gpt2, blocks=blocks)["covariances"].disk_bytes for blocks in (1, 2))
    # An odd side of 2n + 1 leaves blocks of n + 1 and n: one number more than half.
    assert halves == (whole + 4 * 2 * 2) / 2


def test_a_small_budget_costs_passes_and_not_memory(gpt2, monkeypatch):
    monkeypatch.setattr(module, "matrix_budget", lambda: 1)
    alone = stages(gpt2)
    monkeypatch.setattr(module, "matrix_budget", lambda: GIB)
    together = stages(gpt2)
    assert (alone["covariances"].passes, together["covariances"].passes) == (4, 1)
    assert alone["covariances"].memory_bytes < together["covariances"].memory_bytes
    assert alone["covariances"].seconds > together["covariances"].seconds


def test_twice_the_candidates_take_twice_the_time(gpt2):
    one, two = (stages(gpt2, Workload(100, 2, n, 20, 40, 48, 8))["scores"].seconds for n in (50, 100))
    assert two == pytest.approx(2 * one)


def test_a_stage_past_the_free_memory_is_refused_with_what_helps(gpt2):
    found = list(stages(gpt2).values())
    require_fit(found, ComputeParameters(), room=GIB)
    with pytest.raises(PlanRefused, match=r"stage \w.*expected at most the 0.00 GiB.*found 0.0\d GiB.*--batch-size 4"):
        require_fit(found, ComputeParameters(), room=2**20)


@pytest.fixture
def giant(tmp_path):
    """The configuration of a model of 8 billion parameters; it has no weights."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128_256)
    config.architectures = ["LlamaForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return tmp_path


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_read(giant, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda: 24 * GIB)
    with pytest.raises(PlanRefused, match=r"expected weights within the 24.0 GiB.*found \d\d.\d GiB in float32"):
        require_room(giant, FitParameters())


def test_a_module_that_cannot_be_decomposed_is_refused_with_the_blocks_that_would_do(giant, monkeypatch):
    weights = 4 * sum(p.numel() for p in empty_model(giant).parameters())
    monkeypatch.setattr(module, "free_bytes", lambda: weights + 4 * GIB)
    with pytest.raises(PlanRefused, match=r"mlp.gate_proj: expected its covariances.*Use --blocks (\d+)\.") as refusal:
        require_room(giant, FitParameters())
    blocks = int(str(refusal.value).rsplit("--blocks ", 1)[1].rstrip("."))
    assert blocks > 1
    require_room(giant, FitParameters(blocks=blocks))
    with pytest.raises(PlanRefused):
        require_room(giant, FitParameters(blocks=blocks - 1))


def test_the_probe_is_short_however_long_the_context(gpt2, monkeypatch):
    lengths = []

    def counting(model, modules, batches, *rest):
        lengths.extend(batch.token_ids.numel() for batch in batches)
        return []

    monkeypatch.setattr(module, "sweep", counting)
    module.measure_rates(gpt2, [], 131_072, ComputeParameters(precision="float32"))
    assert max(lengths) <= 4096
