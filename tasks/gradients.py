"""Query gradients stage: each query's preconditioned gradient, kept as rank-r factors per module and method."""

from __future__ import annotations

from dataclasses import asdict

import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.factors import read_fit
from storage.prompts import Prompt
from storage.staging import has_staged, staged_tensors_path, staged_writer
from storage.store import Store
from storage.tables import write_part
from storage.tensors import write_tensors
from tasks.influence.batches import TokenSequence
from tasks.influence.compression import compress
from tasks.influence.modules import TrackedModule, coverage, select_modules
from tasks.influence.queries import encode_query, log_probability, preconditioned_gradients
from tasks.metrics import CURVED, Damping, GradientMethod, LexicalMethod, load_metrics
from tasks.progress import progress
from tasks.scoring import Scoring
from tasks.stage import stage


class MethodParameters(BaseModel):
    """How a sequence's influence on a query is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: GradientMethod = Field("ekfac", description="of the run: its layers and tokens are stored")
    beside: tuple[GradientMethod | LexicalMethod, ...] = Field(
        (), description="further methods for comparison, in the same pass; they fill `influences` only"
    )
    damping: Damping = Field(Damping(), description="added to the eigenvalues before they are inverted")
    rank: int = Field(32, ge=1, le=4096, description="singular directions kept of each query gradient and module")
    rescore: int = Field(
        100, ge=0, le=100_000, description="top sequences per query that are scored again exactly, with token shares"
    )


def gradient_methods(parameters: MethodParameters) -> list[str]:
    """The run's method, then those beside it that need a pass of the model."""
    others = [m for m in parameters.beside if m in (*CURVED, "identity") and m != parameters.method]
    return [parameters.method, *dict.fromkeys(others)]


@stage("query gradients")
def prepare_queries(scoring: Scoring, rank: int) -> None:
    """Write the run's `modules`, `query_compressions` and the staged low-rank query gradients."""
    store, run_id, model, prompts = scoring.store, scoring.run_id, scoring.model, scoring.prompts
    if has_staged(store, run_id, "run_queries"):
        return
    network, tokenizer = load_model(model), load_tokenizer(model)
    modules = select_modules(network, scoring.modules)
    context = context_length(model)
    encoded = [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in prompts]
    fit = read_fit(store, scoring.fit_id) if scoring.fit_id else None
    tensors: dict[str, torch.Tensor] = {}
    with progress("query gradients", len(scoring.methods)) as advance:
        for method in scoring.methods:
            metrics = load_metrics(store, fit, model, modules, method, scoring.damping, network.device)
            gradients = preconditioned_gradients(network, modules, encoded, metrics)
            factors = [compress(gradients[module.name], rank) for module in modules]
            for k, factor in enumerate(factors):
                tensors[f"{method}.{k}.left"], tensors[f"{method}.{k}.right"] = factor.left, factor.right
            if method == scoring.method:
                _write_compressions(store, run_id, prompts, modules, factors)
                dampings = {name: metric.damping for name, metric in metrics.items()}
                _write_modules(store, run_id, coverage(network, modules, scoring.modules), dampings)
            advance(1)
    write_tensors(store, staged_tensors_path(store, run_id, "query_gradients"), tensors)
    _write_queries(store, run_id, prompts, encoded, [log_probability(network, query) for query in encoded])


def _write_compressions(
    store: Store, run_id: str, prompts: tuple[Prompt, ...], modules: list[TrackedModule], factors
) -> None:
    rows = [
        (run_id, prompt.query_id, module.name, factor.rank, float(factor.residual[q]))
        for module, factor in zip(modules, factors, strict=True)
        for q, prompt in enumerate(prompts)
    ]
    names = ("run_id", "query_id", "module", "rank", "residual")
    write_part(
        store, "query_compressions", run_id, columns=dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    )


def _write_modules(store: Store, run_id: str, table, dampings: dict[str, float]) -> None:
    rows = [{"run_id": run_id, **asdict(row), "damping": dampings.get(row.module)} for row in table]
    write_part(store, "modules", run_id, columns={name: [row[name] for row in rows] for name in rows[0]})


def _write_queries(
    store: Store, run_id: str, prompts: tuple[Prompt, ...], encoded: list[TokenSequence], log_probabilities: list[float]
) -> None:
    # Written last of this stage: that it is there says that the query gradients are.
    n = len(prompts)
    with staged_writer(store, run_id, "run_queries") as part:
        part.append(
            {
                "run_id": [run_id] * n,
                "query_id": [p.query_id for p in prompts],
                "n_prompt_tokens": [q.first_scored for q in encoded],
                "n_completion_tokens": [len(q.token_ids) - q.first_scored for q in encoded],
                "log_probability": log_probabilities,
                "n_candidates": [None] * n,
                "compression_correlation": [None] * n,
            }
        )
