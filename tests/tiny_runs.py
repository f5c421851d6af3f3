"""Complete runs of a few rows, written as parts, for tests of what keeps house over them."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

from storage.catalog import open_reader
from storage.schemas import RUN_RELATIONS, SCHEMAS
from storage.store import Store
from storage.tables import write_part

STARTED = datetime(2026, 1, 1)
PARAMETERS = {
    "queries": [["q0", "The otter went to the", " harbour."]],
    "fit": {"modules": "mlp"},
    "method": {"method": "ekfac", "beside": [], "damping": {"relative": 0.1, "absolute": None}},
    "precision": "float32",
}


def write_run(store: Store, run_id: str, n: int = 5, day: int = 0, complete: bool = True, **row: Any) -> None:
    """A run that gave sequence z the influence z + 1 on q0, in one module; it finished `day` days after STARTED."""
    z = list(range(n))
    influence = [1.0 + k for k in z]
    values = {
        "candidates": {"sequence_id": z, "filter": ["bm25"] * n, "filter_score": [1.0] * n, "filter_rank": z},
        "influences": {"sequence_id": z, "method": ["ekfac"] * n, "influence": influence,
                       "relative_influence": influence,
                       "exact": [True] * n, "influence_rank": [n - k for k in z]},
        "layer_influences": {"sequence_id": z, "layer": [0] * n, "module": ["h.0"] * n, "influence": influence},
        "token_influences": {"sequence_id": z, "layer": [0] * n, "position": [0] * n, "token_id": [7] * n,
                             "token": ["otter"] * n, "influence": influence},
        "modules": {"module": ["h.0"], "layer": [0], "kind": ["mlp"], "parameters": [64], "tracked": [True],
                    "reason": ["mlp"], "damping": [0.1]},
        "query_compressions": {"module": ["h.0"], "rank": [4], "residual": [0.0]},
        "run_queries": {"n_prompt_tokens": [5], "n_completion_tokens": [2], "log_probability": [-3.0],
                        "n_candidates": [n], "compression_correlation": [1.0]},
        "filter_audits": None, "checkpoint_influences": None, "solver_residuals": None, "hidden_similarities": None,
    }  # fmt: skip
    assert set(values) == set(RUN_RELATIONS)
    for relation, columns in values.items():
        if columns:
            length = len(next(iter(columns.values())))
            own = {"run_id": [run_id] * length, "query_id": ["q0"] * length}
            filled = {name: columns.get(name, own.get(name, [None] * length)) for name in SCHEMAS[relation].names}
            write_part(store, relation, run_id, columns=filled)
    finished = STARTED + timedelta(days=day)
    facts = {
        "run_id": run_id, "status": "completed", "method": "ekfac", "started_at": finished, "finished_at": finished,
        "parameters": json.dumps(PARAMETERS), "model": "tiny", "model_fingerprint": "m", "corpus_fingerprint": "c",
        "factors_id": "ek-1", "n_sequences": n, "code_revision": "r", "library_versions": "{}", "device": "cpu",
        "precision": "float32", "stages": json.dumps({"scores": {"seconds": 1.5, "bytes": 10}}), **row,
    }  # fmt: skip
    if complete:
        write_part(store, "runs", run_id, columns={name: [facts[name]] for name in SCHEMAS["runs"].names})


def tables(store: Store) -> dict[str, list[tuple]]:
    """All rows of all runs, by relation, as a client of the catalog reads them."""
    with closing(open_reader(store)) as connection:
        return {
            name: connection.execute(f"select * from {name} order by all").fetchall()
            for name in ("runs", *RUN_RELATIONS)
        }
