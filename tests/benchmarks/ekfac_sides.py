"""What is timed: headwater, kronfluence and bergson behind one method, `run(stage)`.

Every side does the same work on the same tokens and writes its factors to a temporary directory.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tasks.influence.batches import TokenSequence, batches, token_batches
from tasks.influence.block_diagonal import BlockDiagonal
from tasks.influence.compression import LowRank, contraction_cost, subspace_cost
from tasks.influence.covariance import CovarianceSums, add_covariances, covariance_sums
from tasks.influence.ekfac import Eigenbasis, Metric, eigenbasis, eigenvalue_sums, relative_damping
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.objectives import sampled_token_gradient, true_token_gradient
from tasks.influence.queries import compressed_gradients, query_calls
from tasks.influence.scores import pairwise_scores
from tasks.influence.sweep import sweep

FIT = ("covariances", "eigenbases", "eigenvalues")
STAGES = (*FIT, "scores")
PASS = 4096  # padded positions of one pass of a fit, as in tasks/factors.py
SAMPLED = partial(sampled_token_gradient, seed=0)  # the objective of a fit


def dtype_name(precision: torch.dtype) -> str:
    """float32 or bfloat16."""
    return str(precision).removeprefix("torch.")


@dataclass(frozen=True)
class Work:
    """What every side is given."""

    model: PreTrainedModel
    names: list[str]  # of the tracked modules
    fit: Tensor  # token ids [sequence, position], as are the next two
    queries: Tensor
    many_queries: Tensor  # of the passes beside the floor
    candidates: Tensor
    batch_size: int
    rank: int
    folder: Path


@dataclass(frozen=True)
class Timing:
    """Wall seconds of one run, and on a GPU the bytes that it took above what was there before."""

    seconds: float
    peak: int | None = None


def timed(device: torch.device, action: Callable[[], object]) -> Timing:
    """Run once; a GPU is idle before the clock starts and before it stops."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() if cuda else 0
    start = time.perf_counter()
    action()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return Timing(seconds, torch.cuda.max_memory_allocated() - before if cuda else None)


# headwater: nothing outside this section calls tasks.influence


@dataclass(eq=False)
class Ours:
    """The passes of tasks/factors.py, tasks/gradients.py and tasks/scores.py, with one file per kind of result."""

    work: Work
    precision: torch.dtype
    folder: Path
    objective: Callable = SAMPLED  # of the fit
    damping: float | None = None  # absolute; without it .1 · mean(Λ)
    library: str = "headwater"
    result: Tensor | None = None  # [query, candidate]
    modules: list[TrackedModule] = field(init=False)

    def __post_init__(self) -> None:
        by_name = {module.name: module for module in select_modules(self.work.model, ".*")}
        self.modules = [by_name[name] for name in self.work.names]
        self.folder.mkdir()

    def run(self, stage: str) -> Timing:
        """Time one stage."""
        return timed(self.work.model.device, getattr(self, stage))

    def covariances(self) -> None:
        """Σ ā āᵀ and Σ δ δᵀ."""
        self._save("covariances", covariance_sums(self._fit_passes(), self.modules))

    def eigenbases(self) -> None:
        """Q_A and Q_S."""
        sums = self._load("covariances", self.work.model.device)
        self._save("bases", {name: eigenbasis(add_covariances([total])) for name, total in sums.items()})

    def eigenvalues(self) -> None:
        """Λ."""
        bases = self._load("bases", self.work.model.device)
        sums = eigenvalue_sums(self._fit_passes(), self.modules, bases)
        self._save("eigenvalues", {name: (total.double() / len(self.work.fit)).float() for name, total in sums.items()})

    def scores(self) -> None:
        """Query gradients, preconditioned and compressed, then every candidate against them."""
        self.result = self.score(self.prepare(self.work.queries))

    def prepare(self, queries: Tensor) -> list:
        """Queries in the form that scores a candidate's position most cheaply, module by module."""
        model, context = self.work.model, self.work.candidates.shape[1]
        bases, values = self._load("bases"), self._load("eigenvalues")
        calls = query_calls(model, self.modules, _sequences(queries))
        forms = []
        for module in self.modules:
            basis, lambdas = bases[module.name], values[module.name]
            damping = self.damping or relative_damping(lambdas, 0.1, module.name)
            metric = Metric(basis.out, basis.inp, lambdas, damping).to(model.device)
            forms.append(compressed_gradients(calls[module.name], module, metric, self.work.rank, context))
        return forms

    def score(self, forms: list) -> Tensor:
        """One pass over the candidates, in which scores stay apart by module; summed afterwards."""
        model, rows = self.work.model, _sequences(self.work.candidates)
        stream = batches(rows, self.work.batch_size, model.device)
        found, order = [], []
        for batch, calls in sweep(model, self.modules, stream, true_token_gradient, self.precision):
            scores = [pairwise_scores(calls[m.name], m, q) for m, q in zip(self.modules, forms, strict=True)]
            found.append(torch.stack(scores).cpu())
            order.extend(batch.sequence_ids.tolist())
        return torch.cat(found, dim=2).double().sum(0)[:, torch.tensor(order).argsort()]

    def _fit_passes(self) -> Iterator:
        stream = token_batches(_sequences(self.work.fit), PASS, self.work.model.device)
        return sweep(self.work.model, self.modules, stream, self.objective, self.precision)

    def _save(self, name: str, values: dict) -> None:
        torch.save(values, self.folder / name)

    def _load(self, name: str, device: torch.device | str = "cpu") -> dict:
        with torch.serialization.safe_globals([BlockDiagonal, CovarianceSums, Eigenbasis]):
            return torch.load(self.folder / name, map_location=device, weights_only=True)


def _sequences(ids: Tensor) -> list[TokenSequence]:
    return [TokenSequence(k, row) for k, row in enumerate(ids.tolist())]


def tracked_names(model: PreTrainedModel, expression: str) -> list[str]:
    """Full names of the modules that --modules means."""
    return [module.name for module in select_modules(model, expression)]


def our_products(ours: Ours, forms: list) -> dict[str, float]:
    """Floating-point operations of ours per position, besides the model's: two per multiplication."""
    t, q = ours.work.fit.shape[1], len(ours.work.queries)
    totals: dict[str, float] = defaultdict(float)
    for module, form in zip(ours.modules, forms, strict=True):
        o, i = module.d_out, module.columns
        totals["covariances"] += 2 * 0.625 * (o * o + i * i)  # ten of sixteen tiles of a symmetric matrix
        totals["eigenvalues"] += 2 * (o * o * min(1, i / t) + i * i * min(1, o / t) + o * i)
        if isinstance(form, LowRank):
            totals["scores"] += 2 * contraction_cost(q, o, i, form.rank)
        else:
            totals["scores"] += 2 * subspace_cost(q, *form.cores.shape[1:], o, i, t)
    return totals


# kronfluence


class Kronfluence:
    """kronfluence.Analyzer, in the precision that its own helpers set; its files are as it writes them."""

    def __init__(
        self,
        work: Work,
        precision: torch.dtype,
        options: argparse.Namespace,
        settings: str = "amp",
        parity: bool = False,
    ) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.utils.common import factor_arguments, score_arguments

        warnings.filterwarnings("ignore", message=".*GradScaler", category=FutureWarning)
        self.work, self.precision, self.result, rank = work, precision, None, options.their_rank
        low = precision != torch.float32
        self.library = f"kronfluence ({settings})" if low else "kronfluence"
        kind = f"{settings}_low_precision" if low and settings != "amp" else "default"
        self.factors = getattr(factor_arguments, f"{kind}_factor_arguments")("ekfac")
        self.factors.use_empirical_fisher = parity
        self.pairs = getattr(score_arguments, f"{kind}_score_arguments")(None, None if parity else rank)
        if low:
            self.factors.amp_dtype = self.pairs.amp_dtype = precision
        task = kronfluence_task(work.names, parity)
        model = prepare_model(copy.deepcopy(work.model), task)  # it wraps modules in place
        name = f"kronfluence-{dtype_name(precision)}-{settings}{'-parity' * parity}"
        cpu = work.model.device.type == "cpu"
        self.analyzer = Analyzer(name, model, task, cpu=cpu, disable_tqdm=True, output_dir=str(work.folder))

    def run(self, stage: str) -> Timing:
        """Time one stage; each kind of label draws from the same random numbers in every round."""
        torch.manual_seed(0)
        return timed(self.work.model.device, getattr(self, stage))

    def covariances(self) -> None:
        """Σ ā āᵀ and Σ δ δᵀ."""
        self._fit(self.analyzer.fit_covariance_matrices)

    def eigenbases(self) -> None:
        """Q_A and Q_S."""
        self.analyzer.perform_eigendecomposition("fit", factor_args=self.factors, overwrite_output_dir=True)

    def eigenvalues(self) -> None:
        """Λ."""
        self._fit(self.analyzer.fit_lambda_matrices)

    def _fit(self, method: Callable) -> None:
        rows, size = list(self.work.fit), self.work.batch_size
        method("fit", rows, per_device_batch_size=size, factor_args=self.factors, overwrite_output_dir=True)

    def scores(self) -> None:
        """Query gradients, preconditioned, then every candidate against them."""
        self.analyzer.compute_pairwise_scores(
            "scores",
            "fit",
            query_dataset=list(self.work.queries),
            train_dataset=list(self.work.candidates),
            per_device_query_batch_size=self.work.batch_size,
            per_device_train_batch_size=self.work.batch_size,
            score_args=self.pairs,
            overwrite_output_dir=True,
        )
        self.result = self.analyzer.load_pairwise_scores("scores")["all_modules"].double()


def kronfluence_task(names: list[str], parity: bool) -> object:
    """Summed nats of the next tokens as the loss and as the measurement.

    Kronfluence counts every position unless it is given a mask; for `parity` the last one, which predicts
    nothing, is masked as it is in headwater. The mask costs a copy of the activations, so it is not timed.
    """
    from kronfluence.task import Task

    class NextToken(Task):
        def compute_train_loss(self, batch: Tensor, model: nn.Module, sample: bool = False) -> Tensor:
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float().flatten(0, 1)
            labels = batch[:, 1:].flatten()
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(torch.softmax(logits, -1), 1).flatten()
            return functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Tensor, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Tensor) -> Tensor | None:
            if not parity:
                return None
            mask = torch.ones_like(batch)
            mask[:, -1] = 0
            return mask

    return NextToken()


# bergson


@dataclass(eq=False)
class Bergson:
    """One precision of the bergson process, which idles between requests."""

    process: subprocess.Popen
    work: Work
    precision: torch.dtype
    library: str = "bergson"

    def run(self, stage: str) -> Timing:
        """Have one stage timed there."""
        request = {"precision": dtype_name(self.precision), "stage": stage}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            log = (self.work.folder / "bergson.log").read_text()
            raise RuntimeError(f"bergson, stage {stage}: expected an answer, found that it ended:\n{log[-3000:]}")
        return Timing(**json.loads(answer))

    @property
    def result(self) -> Tensor:
        """The scores that the last run left."""
        self.run("write_scores")
        return torch.load(self.work.folder / f"bergson-{dtype_name(self.precision)}" / "scores.pt").double()


@contextmanager
def bergson_process(work: Work, options: argparse.Namespace) -> Iterator[subprocess.Popen | None]:
    """Start tests/benchmarks/bergson_speed.py under bergson's interpreter; it ends when its input does."""
    if not options.bergson_python:
        yield None
        return
    work.model.save_pretrained(work.folder / "model")
    torch.save({k: getattr(work, k) for k in ("fit", "queries", "candidates")}, work.folder / "tokens.pt")
    shared = {
        "modules": work.names,
        "context": work.fit.shape[1],
        "batch_size": work.batch_size,
        "settings": options.their_settings[-1],
        "threads": torch.get_num_threads(),
        "tf32": options.tf32,
    }
    (work.folder / "work.json").write_text(json.dumps(shared))
    command = [options.bergson_python, str(Path(__file__).with_name("bergson_speed.py")), str(work.folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if work.model.device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # bergson takes a GPU wherever it sees one
    pipe = subprocess.PIPE
    with (
        open(work.folder / "bergson.log", "w") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment) as process,
    ):
        yield process
        process.stdin.close()
