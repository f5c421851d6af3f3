"""Rankings of a run of fact tracing: the documents of each query under every method and every form of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa

from storage.database import query, rows
from storage.fact_sets import FactSet, collapse_keys, proponents
from storage.pools import document_pairs, without_sequence
from tasks.evaluation.forms import Form, Products, hidden_forms, tracin_forms
from tasks.evaluation.ranking import Candidates, retrieval_metrics
from tasks.fact_scores import Metrics


class Rankings:
    """The pairs that a run compared, as documents or the sentences that they mask; ranks any scores of them.

    A true document without a training sequence is in no pair; it counts as one that no method finds.

    Its forms are those of the macros tracin_scores and embedding_scores, in one pass over the stored products.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, run_id: str, fact_set: FactSet) -> None:
        self._connection, self._run = connection, run_id
        pairs = query(connection, "fact_tracing/pairs", run=run_id)
        connection.register("pairs", pairs)
        self._n_pairs = len(pairs)
        keys, truths = collapse_keys(fact_set), {name: set(found) for name, found in proponents(fact_set).items()}
        names, documents = (list(map(str, pairs[name].to_pylist())) for name in ("query_id", "document_id"))
        row_keys = [keys.get(document, document) for document in documents]
        self.candidates = Candidates(
            names, row_keys, [document in truths[name] for name, document in zip(names, documents, strict=True)]
        )
        true = document_pairs({name: sorted(truths[name]) for name in set(names)})
        lost = {(name, keys[document]) for name, document in without_sequence(connection, true)}
        self._missing = Counter(name for name, _ in lost.difference(zip(names, row_keys, strict=True)))

    def metrics(self, scores: np.ndarray) -> Metrics:
        """Every metric of every query under these scores of the pairs."""
        found: Metrics = {}
        for name, ranks in self.candidates.true_ranks(scores).items():
            for metric, value in retrieval_metrics(ranks, self._missing[name]).items():
                found.setdefault(metric, {})[name] = value
        return found

    def methods(self) -> Iterator[tuple[str, np.ndarray]]:
        """The run's methods with their scores; `relative` ones count as methods of their own."""
        for row in rows(self._connection, "fact_tracing/methods", run=self._run):
            found = query(self._connection, "fact_tracing/method_scores", run=self._run, method=row["method"])
            yield row["method"], _numbers(found["influence"])
            if row["has_relative"]:
                yield f"{row['method']} relative", _numbers(found["relative_influence"])

    def tracin_forms(self, first_step: int) -> Iterator[tuple[Form, np.ndarray]]:
        """Every form of TracIn, group by group; a mean leaves out checkpoints before `first_step`."""
        found = rows(self._connection, "fact_tracing/checkpoints", run=self._run)
        groups = [row["parameter_group"] for row in self._rows("parameter_groups")]
        steps, rates = [row["checkpoint"] for row in found], [row["learning_rate"] for row in found]
        # A model before its first step has no second moments; those of later checkpoints may be missing.
        has_moments = all(row["has_moments"] for row in found if row["checkpoint"] >= first_step)
        for scaled in (False, True) if has_moments else (False,):
            if not found:
                return
            joined: dict[str, Products] = {}
            for group in groups:
                products = self._products(group, scaled, steps)
                yield from tracin_forms(group, products, scaled, steps, rates, first_step)
                for part in ("all", "blocks") if group.startswith("block ") else ("all",):
                    joined[part] = joined[part] + products if part in joined else products
            for part, products in joined.items():
                yield from tracin_forms(part, products, scaled, steps, rates, first_step)

    def hidden_forms(self) -> Iterator[tuple[Form, np.ndarray]]:
        """Cosines of mean hidden states, layer by layer, then of all layers joined."""
        table = query(self._connection, "fact_tracing/states", run=self._run)
        layers = sorted(set(table["layer"].to_pylist()))
        if layers:
            yield from hidden_forms(layers, self._filled(table, "layer", layers, ""))

    def gradient_norms(self) -> dict[str, dict[int, float]]:
        """The length of each query's gradient at each checkpoint, by query and step."""
        found: dict[str, dict[int, float]] = {}
        for row in self._rows("gradient_norms"):
            found.setdefault(row["query_id"], {})[row["checkpoint"]] = row["query_norm"]
        return found

    def _rows(self, name: str) -> list[dict]:
        return rows(self._connection, f"fact_tracing/{name}", run=self._run)

    def _products(self, group: str, scaled: bool, steps: list[int]) -> Products:
        table = query(self._connection, "fact_tracing/products", run=self._run, group=group)
        return self._filled(table, "checkpoint", steps, "scaled_" if scaled else "")

    def _filled(self, table: pa.Table, axis: str, values: list[int], prefix: str) -> Products:
        """Rows as arrays [value of `axis`, pair]; NaN where a pair has no row."""
        at = np.searchsorted(values, table[axis].to_numpy()), table["pair"].to_numpy()
        found = [np.full((len(values), self._n_pairs), np.nan) for _ in range(3)]
        for array, name in zip(found, ("dot", "query_norm", "sequence_norm"), strict=True):
            array[at] = _numbers(table[prefix + name])
        return Products.of_part(*found)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()
