"""Query gradients stage: the queries' preconditioned gradients, compressed per module and method."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace

import torch
from transformers import PreTrainedModel

from storage.checkpoints import context_length, load_model, load_tokenizer, stored_precision
from storage.factors import Fit
from storage.prompts import Prompt
from storage.sequences import corpus_parts, typical_length
from storage.staging import has_staged, staged_tensors_path, staged_writer
from storage.store import Store
from storage.tables import write_part, writing
from storage.tensors import write_tensors
from tasks.fanout import Workers, run_where_the_model_is
from tasks.influence.batches import TokenSequence
from tasks.influence.capture import Call
from tasks.influence.compression import compress, tensors_of
from tasks.influence.conjugate_gradients import Solved
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import TrackedModule, coverage, select_modules
from tasks.influence.queries import compressed_gradients, encode_query, log_probability, query_calls
from tasks.influence.vectors import Vectors
from tasks.machine import matrix_budget
from tasks.methods import SOLVED
from tasks.metrics import fit_of, load_metric, rank_notes
from tasks.progress import progress
from tasks.scoring import Scoring
from tasks.solvers import System, solve
from tasks.stage import stage

log = logging.getLogger(__name__)
HELD_BY_SOLVERS = 8  # times a query's gradient
FORMS = 4 * 2**30  # bytes that the cores of all modules' query subspaces may take together


@stage("query gradients")
def prepare_queries(scoring: Scoring, workers: Workers) -> None:
    """Write the run's `modules`, `query_compressions` and the staged query gradients."""
    if not has_staged(scoring.store, scoring.run_id, "run_queries"):
        run_where_the_model_is(workers, write_query_gradients, scoring, "query gradients")


def write_query_gradients(scoring: Scoring) -> None:
    """One job for all queries, because they may share a subspace."""
    store, run_id, model, prompts = scoring.store, scoring.run_id, scoring.model, scoring.prompts
    if has_staged(store, run_id, "run_queries"):
        return
    network, tokenizer = load_model(model), load_tokenizer(model)
    context = context_length(model)
    encoded = [encode_query(tokenizer, p.prompt, p.completion, context, p.query_id) for p in prompts]
    modules = select_modules(network, scoring.modules)
    fit = fit_of(store, scoring.fit_id, model)
    table = coverage(network, modules, scoring.modules)
    if scoring.method not in scoring.methods:
        table = [replace(row, tracked=False, reason=_why_uncovered(scoring.method)) for row in table]
    compressions, dampings = _compress(scoring, network, modules, fit, encoded) if scoring.methods else ([], {})
    _write_compressions(store, run_id, prompts, compressions)
    stored = stored_precision(model)
    precision = "" if stored == "float32" else f"; stored in {stored}, loaded in float32"
    _write_modules(store, run_id, table, dampings, rank_notes(fit), precision)
    _write_queries(store, run_id, prompts, encoded, [log_probability(network, query) for query in encoded])


def _why_uncovered(method: str) -> str:
    if "tracin" in method:
        return f"{method} compares every parameter, by group: see checkpoint_influences"
    return f"{method} compares no gradients"


Compressions = list[tuple[str, int, list[float]]]  # module, rank, and of each query what its gradient loses


def _compress(
    scoring: Scoring,
    network: PreTrainedModel,
    modules: list[TrackedModule],
    fit: Fit | None,
    encoded: list[TokenSequence],
) -> tuple[Compressions, dict[str, float]]:
    """Stage the queries' gradients; what their compression drops, and each module's damping, of the run's method."""
    store, run_id = scoring.store, scoring.run_id
    positions = typical_length(corpus_parts(store))
    calls = query_calls(network, modules, encoded)
    tensors: dict[str, torch.Tensor] = {}
    compressions: Compressions = []
    dampings: dict[str, float] = {}
    # A constant share, not one of this machine's memory: the form decides what is dropped.
    room = FORMS // (len(modules) * len(scoring.methods))
    rank = scoring.measured.rank
    solutions, shared = _solve(scoring, network, modules, fit, calls)
    with progress("query gradients", len(modules)) as advance:
        for k, module in enumerate(modules):
            for method in scoring.methods:  # one metric and one module's gradients at a time
                if method in SOLVED:
                    form = compress(solutions[method][module.name].__iter__, rank, positions, room)
                    damping = shared[module.name]
                else:
                    metric = load_metric(store, fit, module, method, scoring.damping, network.device)
                    form = compressed_gradients(calls[module.name], module, metric, rank, positions, room)
                    damping = metric.damping
                tensors |= {f"{method}.{k}.{name}": tensor for name, tensor in tensors_of(form).items()}
                if method == scoring.method:
                    compressions.append((module.name, form.rank, form.residual.tolist()))
                    dampings[module.name] = damping
            advance(1)
    write_tensors(store, staged_tensors_path(store, run_id, "query_gradients"), tensors)
    return compressions, dampings


def _solve(
    scoring: Scoring,
    network: PreTrainedModel,
    modules: list[TrackedModule],
    fit: Fit | None,
    calls: dict[str, list[list[Call]]],
) -> tuple[dict[str, Vectors], dict[str, float]]:
    """(G + λI)⁻¹ ∇L_q under each method that solves for it, and the λ of each module, which they share.

    Some queries are solved for at a time; those of the run's own method are staged whole.
    """
    methods = scoring.measured.among(SOLVED)
    if not methods:
        return {}, {}
    assert fit is not None  # the flow fits before it solves
    system = System(scoring, network, modules, fit)
    n = len(scoring.prompts)
    few = max(1, matrix_budget() // (HELD_BY_SOLVERS * 4 * sum(m.d_out * m.columns for m in modules)))
    found: dict[str, list[Vectors]] = {method: [] for method in methods}
    with writing(scoring.store, "solver_residuals", scoring.run_id) as part, progress("solvers", n) as advance:
        for start in range(0, n, few):
            some = slice(start, start + few)
            gradients = {
                m.name: torch.cat([sequence_gradients(uses, m) for uses in calls[m.name][some]]) for m in modules
            }
            for method in methods:
                solved = solve(system, method, gradients)
                found[method].append({name: value.cpu() for name, value in solved.vectors.items()})
                part.append(_residual_rows(scoring, method, some, solved))
                _say_unsolved(scoring, method, solved)
            advance(len(scoring.prompts[some]))
    whole = {
        method: {m.name: torch.cat([p[m.name] for p in parts]) for m in modules} for method, parts in found.items()
    }
    if scoring.method in whole:
        path = staged_tensors_path(scoring.store, scoring.run_id, "solutions")
        write_tensors(scoring.store, path, whole[scoring.method])
    return whole, system.damping


def _say_unsolved(scoring: Scoring, method: str, solved: Solved) -> None:
    """A line in the run's log where iterations were over before the tolerance was reached."""
    last, wanted = solved.residuals[-1], scoring.measured.solver.tolerance
    if method == "cg" and bool((last > wanted).any()):
        log.warning(
            "cg: after %d iterations the residual is %.2g times the gradient (median; %.2g at most), not %.2g. More "
            "iterations (--iterations) or more damping (--damping) bring it down.",
            len(solved.residuals) - 1, float(last.median()), float(last.max()), wanted,
        )  # fmt: skip


def _residual_rows(scoring: Scoring, method: str, some: slice, solved: Solved) -> dict[str, list]:
    names = [prompt.query_id for prompt in scoring.prompts[some]]
    steps, q = solved.residuals.shape
    return {
        "run_id": [scoring.run_id] * (steps * q),
        "query_id": names * steps,
        "method": [method] * (steps * q),
        "iteration": [k for k in range(steps) for _ in range(q)],
        "residual": [None if math.isnan(r) else r for r in solved.residuals.flatten().tolist()],
    }


def _write_compressions(store: Store, run_id: str, prompts: tuple[Prompt, ...], compressions: Compressions) -> None:
    rows = [
        (run_id, prompt.query_id, module, rank, residual)
        for module, rank, residuals in compressions
        for prompt, residual in zip(prompts, residuals, strict=True)
    ]
    names = ("run_id", "query_id", "module", "rank", "residual")
    columns = {name: [row[k] for row in rows] for k, name in enumerate(names)}
    write_part(store, "query_compressions", run_id, columns=columns)


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
