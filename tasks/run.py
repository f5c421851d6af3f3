"""A run: one experiment, named by the digest of everything that decides its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.checkpoints import model_fingerprint, tokenizer_fingerprint
from storage.clock import store_time
from storage.digests import code_revision, digest_of
from storage.errors import InputError
from storage.prompts import Prompt
from storage.sequences import corpus_fingerprint, corpus_parts
from storage.store import Store
from storage.tables import has_part
from tasks.candidates import CandidateParameters
from tasks.compute import ComputeParameters, dtype_of
from tasks.factors import FitParameters
from tasks.gradients import MethodParameters, gradient_methods
from tasks.metrics import metric_id
from tasks.results import RunFacts
from tasks.scoring import Scoring


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
    facts: RunFacts

    @property
    def is_complete(self) -> bool:
        """Whether its rows stand in the tables."""
        return has_part(self.store, "runs", self.run_id)

    @property
    def scoring_methods(self) -> tuple[str, ...]:
        """The methods that need passes of the model, the run's own first."""
        return tuple(gradient_methods(self.method))

    def scoring(self, fit_id: str | None) -> Scoring:
        """What the scoring stages need to know, once the factors are there."""
        return Scoring(
            self.store,
            self.run_id,
            self.model,
            self.modules,
            fit_id,
            metric_id(
                fit_id,
                self.facts.model_fingerprint,
                self.modules,
                self.method.method,
                self.method.damping,
                self.compute,
            ),
            self.method.method,
            self.scoring_methods,
            self.method.damping,
            self.method.rescore,
            self.compute,
            self.prompts,
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
    unmatched = {"bm25", "tfidf"} & set(method.beside) - set(candidates.filters)
    if unmatched:
        raise InputError(
            f"method beside {unmatched.pop()}",
            expected=f"the filters' own scores ({', '.join(candidates.filters)})",
            found="another lexical method, whose scores the candidates do not have",
            remedy="Add it with --filter, or leave it out.",
        )
    parts = corpus_parts(store)
    parameters = {
        "queries": [[p.query_id, p.prompt, p.completion] for p in prompts],
        "candidates": candidates.model_dump(),
        "fit": fit.model_dump(),
        "method": method.model_dump(),
        "precision": str(dtype_of(compute)),
    }
    facts = RunFacts(
        parameters,
        str(model),
        model_fingerprint(model),
        corpus_fingerprint(parts),
        sum(part.n_sequences for part in parts),
        store_time(store),
        tuple(method.beside),
    )
    made_from = [parameters, facts.model_fingerprint, tokenizer_fingerprint(model), facts.corpus_fingerprint]
    run_id = f"run-{digest_of([*made_from, code_revision()])[:10]}"
    return Run(store, run_id, model, tuple(prompts), fit.modules, method, compute, facts)
