"""Results stage: staged scores to the result tables, checked before anybody sees them; the run's row comes last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage.catalog import ensure_catalog
from storage.checkpoints import empty_model
from storage.clock import store_time
from storage.database import part_view, rows, session, statement, statement_names, stream
from storage.digests import code_revision, library_versions
from storage.errors import StoreError
from storage.staging import view_staged
from storage.store import Store
from storage.tables import has_part, write_part, writing
from tasks.compute import dtype_of
from tasks.influence.modules import select_modules
from tasks.methods import FILTER, GRADIENT
from tasks.scoring import Scoring
from tasks.stage import stage

STAGED_FOR_RESULTS = (
    "scored", "exact_layers", "exact_tokens", "run_queries", "texts", "checkpoint_influences", "hidden_similarities",
)  # fmt: skip


@dataclass(frozen=True)
class RunFacts:
    """What the run's row says besides its scores."""

    parameters: dict[str, Any]
    model: str
    model_fingerprint: str
    corpus_fingerprint: str
    n_sequences: int
    started_at: datetime


@stage("results")
def publish(scoring: Scoring, facts: RunFacts) -> None:
    """Write `layer_influences`, `token_influences`, `influences` and `run_queries` of a run, and check them."""
    store, run_id = scoring.store, scoring.run_id
    modules = select_modules(empty_model(scoring.model), scoring.modules)
    common = {"run_id": run_id, "method": scoring.method}
    followed = _followed(scoring)
    with session(store) as connection:
        for relation in STAGED_FOR_RESULTS:
            view_staged(connection, store, run_id, relation)
        part_view(connection, store, "run_candidates", "candidates", run_id)
        _write(connection, store, "checkpoint_influences", run_id, run_id=run_id)
        _write(connection, store, "hidden_similarities", run_id, run_id=run_id)
        _write(
            connection, store, "layer_influences", run_id, **common, **followed,
            modules=[m.name for m in modules], layers=[m.layer for m in modules],
        )  # fmt: skip
        _write(connection, store, "token_influences", run_id, run_id=run_id)
        _write(
            connection, store, "influences", run_id, **common, **followed,
            methods=list(scoring.measured.every), filters=list(scoring.measured.among(FILTER)),
            gradient_methods=list(GRADIENT), hidden_layers=list(scoring.measured.trajectory.hidden_layers),
            n_sequences=facts.n_sequences, factors_id=scoring.factors_id,
        )  # fmt: skip
        _write(connection, store, "run_queries", run_id, method=scoring.method)
        check_run(connection, store, run_id, scoring.method)


def _followed(scoring: Scoring) -> dict[str, Any]:
    """How TracIn adds up the checkpoints, as its macros call it."""
    asked = scoring.measured.trajectory
    return {
        "parameter_groups": list(asked.parameter_groups),
        "normalise": asked.normalise,
        "weights": asked.weights,
        "scaled": asked.second_moments,
        "first_step": asked.first_step,
    }


def _write(connection, store: Store, relation: str, name: str, /, **parameters: Any) -> None:
    with writing(store, relation, name) as part:
        for batch in stream(connection, f"results/{relation}", **parameters):
            part.append_table(batch)
    part_view(connection, store, f"run_{relation}", relation, name)


def check_run(connection, store: Store, run_id: str, method: str) -> None:
    """Run every statement of sql/checks; each returns the rows that must not be there."""
    for name in statement_names("checks"):
        parameters = {"method": method} if "$method" in statement(name) else {}
        offending = rows(connection, name, **parameters)
        if offending:
            raise StoreError(
                f"run {run_id}, check {name.removeprefix('checks/')}",
                expected="no offending row",
                found=f"{len(offending)}, the first {offending[0]}",
                remedy="Nothing was published. Please report this: it is a fault of headwater's own.",
            )


def complete_run(scoring: Scoring, facts: RunFacts, stages: dict[str, dict[str, float]], device: str) -> None:
    """Swap in a fresh catalog and write the run's row, which makes its rows visible; `device` passed the model."""
    store, run_id = scoring.store, scoring.run_id
    ensure_catalog(store)
    if not has_part(store, "runs", run_id):
        row = {
            "run_id": run_id,
            "status": "completed",
            "method": scoring.method,
            "started_at": facts.started_at,
            "finished_at": store_time(store),
            "parameters": json.dumps(facts.parameters, sort_keys=True, ensure_ascii=False),
            "model": facts.model,
            "model_fingerprint": facts.model_fingerprint,
            "corpus_fingerprint": facts.corpus_fingerprint,
            "factors_id": scoring.factors_id,
            "n_sequences": facts.n_sequences,
            "code_revision": code_revision(),
            "library_versions": json.dumps(library_versions()),
            "device": device,
            "precision": str(dtype_of(scoring.compute)).removeprefix("torch."),
            "stages": json.dumps(stages),
        }
        write_part(store, "runs", run_id, columns={name: [value] for name, value in row.items()})
