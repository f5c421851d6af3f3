"""Query gradients stage: the queries' preconditioned gradients, compressed per module and method."""

from __future__ import annotations

from dataclasses import asdict

import torch
from pydantic import BaseModel, ConfigDict, Field

from storage.checkpoints import context_length, load_model, load_tokenizer, stored_precision
from storage.prompts import Prompt
from storage.sequences import corpus_parts, typical_length
from storage.staging import has_staged, staged_tensors_path, staged_writer
from storage.store import Store
from storage.tables import write_part
from storage.tensors import write_tensors
from tasks.influence.batches import TokenSequence
from tasks.influence.compression import tensors_of
from tasks.influence.modules import coverage, select_modules
from tasks.influence.queries import compressed_gradients, encode_query, log_probability, query_calls
from tasks.metrics import CURVED, Damping, GradientMethod, LexicalMethod, fit_of, load_metric, rank_notes
from tasks.progress import progress
from tasks.scoring import Scoring
from tasks.stage import stage

FORMS = 4 * 2**30  # bytes that the cores of all modules' query subspaces may take together


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
    """Write the run's `modules`, `query_compressions` and the staged query gradients."""
    store, run_id, model, prompts = scoring.store, scoring.run_id, scoring.model, scoring.prompts
    if has_staged(store, run_id, "run_queries"):
        return
    network, tokenizer = load_model(model), load_tokenizer(model)
    modules = select_modules(network, scoring.modules)
    context = context_length(model)
    encoded = [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in prompts]
    fit = fit_of(store, scoring.fit_id, model)
    positions = typical_length(corpus_parts(store))
    calls = query_calls(network, modules, encoded)
    tensors: dict[str, torch.Tensor] = {}
    compressions: list[tuple[str, int, list[float]]] = []
    dampings: dict[str, float] = {}
    # A constant share, not one of this machine's memory: the form decides what is dropped.
    room = FORMS // (len(modules) * len(scoring.methods))
    with progress("query gradients", len(modules)) as advance:
        for k, module in enumerate(modules):
            for method in scoring.methods:  # one metric and one module's gradients at a time
                metric = load_metric(store, fit, module, method, scoring.damping, network.device)
                form = compressed_gradients(calls[module.name], module, metric, rank, positions, room)
                tensors |= {f"{method}.{k}.{name}": tensor for name, tensor in tensors_of(form).items()}
                if method == scoring.method:
                    compressions.append((module.name, form.rank, form.residual.tolist()))
                    dampings[module.name] = metric.damping
            advance(1)
    _write_compressions(store, run_id, prompts, compressions)
    stored = stored_precision(model)
    precision = "" if stored == "float32" else f"; stored in {stored}, loaded in float32"
    _write_modules(store, run_id, coverage(network, modules, scoring.modules), dampings, rank_notes(fit), precision)
    write_tensors(store, staged_tensors_path(store, run_id, "query_gradients"), tensors)
    _write_queries(store, run_id, prompts, encoded, [log_probability(network, query) for query in encoded])


def _write_compressions(
    store: Store, run_id: str, prompts: tuple[Prompt, ...], compressions: list[tuple[str, int, list[float]]]
) -> None:
    rows = [
        (run_id, prompt.query_id, module, rank, residual)
        for module, rank, residuals in compressions
        for prompt, residual in zip(prompts, residuals, strict=True)
    ]
    names = ("run_id", "query_id", "module", "rank", "residual")
    write_part(
        store, "query_compressions", run_id, columns=dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    )


def _write_modules(
    store: Store, run_id: str, table, dampings: dict[str, float], notes: dict[str, str], precision: str
) -> None:
    rows = [{"run_id": run_id, **asdict(row), "damping": dampings.get(row.module)} for row in table]
    for row in rows:
        row["reason"] += notes.get(row["module"], "") + (precision if row["tracked"] else "")
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
