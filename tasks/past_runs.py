"""A complete run as its stages knew it: its model, its queries, its method and the factors that it used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from storage.checkpoints import model_fingerprint
from storage.digests import code_revision
from storage.errors import InputError, MismatchError
from storage.factors import fit_ids
from storage.prompts import Prompt
from storage.sequences import corpus_fingerprint, corpus_parts
from storage.store import Store
from tasks.compute import ComputeParameters
from tasks.factors import FitParameters
from tasks.methods import GRADIENT, SOLVED, MethodParameters
from tasks.metrics import CURVED, metric_id
from tasks.scoring import Scoring


@dataclass(frozen=True)
class PastRun:
    """A row of `runs`, and where the model lies that it names."""

    store: Store
    row: dict[str, Any]
    model: Path

    @property
    def run_id(self) -> str:
        """Its name."""
        return self.row["run_id"]

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What the experiment was."""
        return json.loads(self.row["parameters"])

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Its queries, in the order in which they were given."""
        return tuple(Prompt(*query) for query in self.parameters["queries"])

    @property
    def fit(self) -> FitParameters:
        """What its factors were fitted from."""
        return FitParameters.model_validate(self.parameters["fit"])

    @property
    def method(self) -> MethodParameters:
        """Its method, with what is beside it."""
        return MethodParameters.model_validate(self.parameters["method"])

    @property
    def compute(self) -> ComputeParameters:
        """The precision of its passes."""
        return ComputeParameters.model_validate({"precision": self.row["precision"]})

    @property
    def curved(self) -> bool:
        """Whether its own method used factors."""
        return self.method.method in (*CURVED, *SOLVED)

    def find_fit(self) -> str | None:
        """The fit that its numbers come from, if the store still has it: the one that gives its `factors_id`."""
        return next((fit for fit in fit_ids(self.store) if self.used(fit)), None)

    def used(self, fit_id: str) -> bool:
        """Whether the run's metric is that of a fit."""
        named = "ekfac" if self.method.method in SOLVED else self.method.method
        asked = (self.row["model_fingerprint"], self.fit.modules, named, self.method.damping, self.compute)
        return metric_id(fit_id, *asked) == self.row["factors_id"]

    def require_same_corpus(self) -> None:
        """Refuse to fit again where other factors than the run's would come of it."""
        now = {"corpus": corpus_fingerprint(corpus_parts(self.store)), "numerics": code_revision()}
        then = {"corpus": self.row["corpus_fingerprint"], "numerics": self.row["code_revision"]}
        for name, found in now.items():
            if found != then[name]:
                raise MismatchError(
                    f"factors {self.row['factors_id']} of run {self.run_id}",
                    expected=f"in the store, or the {name} {then[name]} that they were fitted on",
                    found=f"no such factors, and the {name} {found}",
                    remedy="Trace the queries again, and name that run (--run).",
                )

    def require_used(self, fit_id: str) -> None:
        """Refuse a fit that is not the one that the run's numbers come from."""
        if not self.used(fit_id):
            raise MismatchError(
                f"run {self.run_id}",
                expected=f"factors that give {self.row['factors_id']}, as it used them",
                found=f"{fit_id}, which gives others",
                remedy="Trace the queries again, and name that run (--run).",
            )

    def scoring(self, fit_id: str | None) -> Scoring:
        """What its scoring stages were told."""
        return Scoring(
            self.store, self.run_id, self.model, self.fit.modules, fit_id, self.row["factors_id"], self.method,
            self.compute, self.prompts,
        )  # fmt: skip


def recall_run(store: Store, row: dict[str, Any], model: Path) -> PastRun:
    """The run of that row, which compares gradients and was made by the model at `model`."""
    if row["method"] not in GRADIENT:
        raise InputError(
            f"run {row['run_id']} of store {store.root}",
            expected=f"a method that compares gradients ({', '.join(GRADIENT)}), so that weights can move along one",
            found=row["method"],
            remedy="Trace with --method ekfac, or name another run (--run).",
        )
    found = model_fingerprint(model)
    if found != row["model_fingerprint"]:
        raise MismatchError(
            f"run {row['run_id']} of store {store.root}",
            expected=f"the model {row['model_fingerprint']} that made it, once {row['model']}",
            found=f"model {found} in {model}",
            remedy="Say where the run's own model lies (--model), or name another run (--run).",
        )
    return PastRun(store, row, model)
