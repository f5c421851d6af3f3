"""A run: one experiment, named by the digest of everything that decides its numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from storage.checkpoints import model_fingerprint, tokenizer_fingerprint
from storage.clock import store_time
from storage.digests import code_revision, digest_of, digest_of_file
from storage.errors import InputError
from storage.prompts import Prompt
from storage.retention import USES
from storage.sequences import corpus_fingerprint, corpus_parts
from storage.staging import read_note, write_note
from storage.store import Store
from storage.tables import has_part
from storage.trajectory import Checkpoint, read_trajectory
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters, dtype_of
from tasks.factors import FitParameters
from tasks.methods import FILTER, GRADIENT, SOLVED, TRAJECTORY, MethodParameters
from tasks.metrics import metric_id
from tasks.results import RunFacts
from tasks.scoring import Scoring

NO_FACTORS = "none"  # the factors_id of a run whose own method compares no gradients under a metric


@dataclass(frozen=True)
class Run:
    """An experiment that may already have been carried out."""

    store: Store
    run_id: str
    model: Path
    prompts: tuple[Prompt, ...]
    modules: str
    method: MethodParameters
    compute: ComputeParameters
    checkpoints: tuple[Checkpoint, ...]
    facts: RunFacts

    @property
    def is_complete(self) -> bool:
        """Whether its rows stand in the tables."""
        return has_part(self.store, "runs", self.run_id)

    def note_use(self, factors_id: str | None = None) -> None:
        """Say what this run reads of what others may delete, as its row will: before it looks whether that is there."""
        facts = self.facts
        known = read_note(self.store, self.run_id, USES) or {"factors_id": None}
        uses = {
            "run_id": self.run_id,
            "parameters": json.dumps(facts.parameters),
            "model_fingerprint": facts.model_fingerprint,
            "corpus_fingerprint": facts.corpus_fingerprint,
            "code_revision": code_revision(),
            "factors_id": factors_id or known["factors_id"],
        }
        write_note(self.store, self.run_id, USES, uses)

    def scoring(self, fit_id: str | None) -> Scoring:
        """What the scoring stages need to know, once the factors are there."""
        own, facts = self.method.method, self.facts
        factors_id = NO_FACTORS
        if own in GRADIENT:
            metric = "ekfac" if own in SOLVED else own
            factors_id = metric_id(
                fit_id, facts.model_fingerprint, self.modules, metric, self.method.damping, self.compute
            )
        return Scoring(
            self.store,
            self.run_id,
            self.model,
            self.modules,
            fit_id,
            factors_id,
            self.method,
            self.compute,
            self.prompts,
            self.checkpoints,
        )


def describe_run(
    store: Store,
    model: Path,
    prompts: list[Prompt],
    candidates: CandidateParameters,
    fit: FitParameters,
    method: MethodParameters,
    compute: ComputeParameters,
) -> Run:
    """Name the experiment: the same model, corpus, queries, parameters and code give the same run."""
    _require_scores(method, candidates)
    checkpoints = _trajectory(model, method)
    parts = corpus_parts(store)
    parameters = {
        "queries": [[p.query_id, p.prompt, p.completion] for p in prompts],
        "candidates": candidates.model_dump(),
        "fit": fit.model_dump(),
        "method": method.model_dump(exclude=_unasked(method)),
        "precision": str(dtype_of(compute)),
    }
    facts = RunFacts(
        parameters,
        str(model),
        model_fingerprint(model),
        corpus_fingerprint(parts),
        sum(part.n_sequences for part in parts),
        store_time(store),
    )
    made_from = [parameters, facts.model_fingerprint, tokenizer_fingerprint(model), facts.corpus_fingerprint]
    made_from += [_fingerprints(checkpoints)] if checkpoints else []
    run_id = f"run-{digest_of([*made_from, code_revision()])[:10]}"
    return Run(store, run_id, model, tuple(prompts), fit.modules, method, compute, checkpoints, facts)


def _unasked(method: MethodParameters) -> set[str]:
    """The parameters of methods that the run does not have: they name nothing."""
    kinds = {"trajectory": TRAJECTORY, "solver": SOLVED}
    return {name for name, methods in kinds.items() if not method.among(methods)}


def _require_scores(method: MethodParameters, candidates: CandidateParameters) -> None:
    """Refuse lexical methods whose scores the candidates do not have."""
    for name in method.among(FILTER):
        if name not in candidates.filters:
            raise InputError(
                f"method {name}",
                expected=f"the filters' own scores ({', '.join(candidates.filters)})",
                found="another lexical method, whose scores the candidates do not have",
                remedy="Add it with --filter, or leave it out.",
            )
    if method.method in FILTER and (len(set(candidates.filters)) > 1 or candidates.unfiltered):
        raise InputError(
            f"method {method.method}",
            expected="candidates that its own filter chose, so that each has a score",
            found="others beside them",
            remedy=f"Leave --filter {method.method} alone and --unfiltered 0, or put {method.method} --beside another.",
        )


def _fingerprints(checkpoints: tuple[Checkpoint, ...]) -> list:
    """What TracIn's numbers depend on in each checkpoint."""
    return [
        [
            c.step,
            c.learning_rate,
            model_fingerprint(c.path),
            digest_of_file(c.second_moments) if c.second_moments else "",
        ]
        for c in checkpoints
    ]


def _trajectory(model: Path, method: MethodParameters) -> tuple[Checkpoint, ...]:
    """The checkpoints that the methods follow; without a directory of them the model alone counts as one."""
    if not method.among(TRAJECTORY):
        return ()
    if method.trajectory.checkpoints is None:
        return (Checkpoint(model, max(1, method.trajectory.first_step), None, None),)
    checkpoints = read_trajectory(Path(method.trajectory.checkpoints), model)
    first = method.trajectory.first_step
    if checkpoints[-1].step < first:
        raise InputError(
            f"checkpoints {method.trajectory.checkpoints}",
            expected=f"one after step {first} of the training or later",
            found=f"none after step {checkpoints[-1].step}",
            remedy="Take in earlier ones (--first-step 0), or leave --checkpoints out: the model then counts as one.",
        )
    return checkpoints
