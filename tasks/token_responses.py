"""Token responses stage: how the tokens of a query's first sequences answer when the weights move towards the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from storage.checkpoints import context_length, load_model, load_tokenizer
from storage.database import rows, session
from storage.digests import code_revision, digest_of
from storage.errors import InputError
from storage.prompts import Prompt
from storage.store import Store
from storage.tables import has_part, made_from, writing
from tasks.fanout import Workers, fan_out
from tasks.influence.batches import TokenSequence
from tasks.influence.gradients import sequence_gradients
from tasks.influence.modules import TrackedModule, select_modules
from tasks.influence.queries import encode_query, preconditioned_gradients, query_calls
from tasks.influence.token_influence import MovedModel, TokenInfluence
from tasks.methods import SOLVED
from tasks.metrics import fit_of, load_metric
from tasks.scoring import Scoring
from tasks.solvers import System, solve
from tasks.stage import stage

RELATION = "token_responses"


@dataclass(frozen=True)
class ResponseJob:
    """One query and its sequences; rises are nats of the query's log-probability, to first order."""

    scoring: Scoring
    part: str
    prompt: Prompt
    sequences: tuple[TokenSequence, ...]
    rises: tuple[float, ...]

    @property
    def made_from(self) -> str:
        """What decides the numbers of its part, beside the run's own identity."""
        asked = [[sequence.sequence_id for sequence in self.sequences], self.rises]
        return digest_of([self.scoring.factors_id, asked, code_revision()])[:16]


@stage("token responses")
def respond(
    scoring: Scoring, queries: Sequence[str], k: int, rises: tuple[float, ...], workers: Workers
) -> tuple[str, ...]:
    """Fill `token_responses` for each query's first k exactly scored sequences; returns the queries that have any."""
    numbers = {prompt.query_id: n for n, prompt in enumerate(scoring.prompts)}
    _require_known(scoring, queries, numbers)
    of = _sequences(scoring.store, scoring.run_id, queries, k)
    if not of:
        raise InputError(
            f"run {scoring.run_id} of store {scoring.store.root}",
            expected="sequences that were scored exactly, with influences by token",
            found=f"none for {', '.join(queries[:5])}",
            remedy="Trace with --rescore above 0, or name another run (--run).",
        )
    jobs = [
        ResponseJob(scoring, str(numbers[query]), scoring.prompts[numbers[query]], sequences, rises)
        for query, sequences in of.items()
    ]
    fan_out(workers.model, write_responses, jobs, "token responses", workers.model_resources)
    return tuple(of)


def _require_known(scoring: Scoring, queries: Sequence[str], numbers: dict[str, int]) -> None:
    unknown = [query for query in queries if query not in numbers]
    if unknown:
        raise InputError(
            f"query {unknown[0]!r} of run {scoring.run_id}",
            expected=f"one of {', '.join(list(numbers)[:10])}{' …' if len(numbers) > 10 else ''}",
            found="no query of that name in this run",
            remedy="Correct --query, or name the run that has it (--run).",
        )


def _sequences(store: Store, run_id: str, queries: Sequence[str], k: int) -> dict[str, tuple[TokenSequence, ...]]:
    """Each query's first k exactly scored sequences, in the order of the queries."""
    with session(store) as connection:
        found = rows(connection, "studies/exact_sequences", run=run_id, queries=list(queries), k=k)
    of: dict[str, list[TokenSequence]] = {}
    for row in found:
        of.setdefault(row["query_id"], []).append(TokenSequence(row["sequence_id"], tuple(row["token_ids"])))
    return {query: tuple(of[query]) for query in queries if query in of}


def write_responses(job: ResponseJob) -> None:
    """One query: its direction is found once, then the weights move along it for each sequence and step."""
    scoring, names = job.scoring, (job.scoring.run_id, job.part)
    if has_part(scoring.store, RELATION, *names) and made_from(scoring.store, RELATION, *names) == job.made_from:
        return
    network, tokenizer, prompt = load_model(scoring.model), load_tokenizer(scoring.model), job.prompt
    modules = select_modules(network, scoring.modules)
    query = encode_query(tokenizer, prompt.prompt, prompt.completion, context_length(scoring.model), prompt.query_id)
    moved = MovedModel(network, modules, _solutions(scoring, network, modules, query))
    steps = [(rise, rise / moved.rise(query)) for rise in job.rises]
    with writing(scoring.store, RELATION, *names) as part:
        part.note(job.made_from)
        for sequence in job.sequences:
            for rise, alpha in [(0.0, 0.0), *steps]:
                found = moved.moved(sequence, alpha) if alpha else moved.limit(sequence)
                part.append(_rows(scoring.run_id, prompt.query_id, sequence, rise, alpha, found))


def _solutions(
    scoring: Scoring, network: PreTrainedModel, modules: list[TrackedModule], query: TokenSequence
) -> dict[str, torch.Tensor]:
    """(G + λI)⁻¹ ∇L_q of each module [o, i], by the run's own method."""
    fit = fit_of(scoring.store, scoring.fit_id, scoring.model)
    if scoring.method in SOLVED:
        assert fit is not None  # the flow finds it, or fits, before it asks
        calls = query_calls(network, modules, [query])
        gradients = {m.name: sequence_gradients(calls[m.name][0], m) for m in modules}
        found = solve(System(scoring, network, modules, fit), scoring.method, gradients).vectors
    else:
        metric_of = partial(_metric, scoring, fit, network.device)
        found = preconditioned_gradients(network, modules, [query], metric_of)
    return {name: value[0] for name, value in found.items()}


def _metric(scoring: Scoring, fit, device: torch.device, module: TrackedModule):
    return load_metric(scoring.store, fit, module, scoring.method, scoring.damping, device)


def _rows(
    run_id: str, query_id: str, sequence: TokenSequence, rise: float, alpha: float, found: TokenInfluence
) -> dict[str, list]:
    t = len(sequence.token_ids)
    return {
        "run_id": [run_id] * t,
        "query_id": [query_id] * t,
        "sequence_id": [sequence.sequence_id] * t,
        "rise": [rise] * t,
        "alpha": [alpha] * t,
        "position": list(range(t)),
        "token_id": list(sequence.token_ids),
        "input_influence": found.inputs.double().tolist(),
        "output_influence": [None, *found.outputs.double().tolist()],
    }
