"""Annotations: what people see in the most influential sequences, model by model (Grosse et al. 2023, app. F)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from storage.database import query, rows, session
from storage.errors import InputError
from storage.pages import visible
from storage.store import Store
from storage.tables import has_part
from storage.text import printable
from tasks.evaluation.ranking import Estimate
from tasks.evaluation.reliability import alpha_estimate, clustered_mean, pair_agreement
from tasks.fact_tables import Cell, Row, Table
from tasks.figures import add_figures
from tasks.studies.shown import filled, plain_table
from tasks.study_page import Block, Page, bars, estimate_table

QUERIES = 60  # with a table of their own on the page
TITLE = 90  # characters of a query at the head of its table
SHARES = ("relevant", "relevant, spurious ones aside", "pairs that agree", "Krippendorff’s α")
METRICS = ("relevant", "relevant_without_spurious", "annotator_agreement", "krippendorff_alpha")  # in `evaluations`
HOW = (
    "A sequence is relevant as far as people wrote something else than “irrelevant”: where two of three did, it counts "
    "two thirds. Brackets are 95 % percentile bootstrap intervals over queries (of a single query over its sequences)."
)
ALPHA = (
    "Krippendorff’s α compares how often two people differ on relevance with how often they would by chance: 1 is "
    "agreement, 0 is chance. It and the pairs are of sequences that two people or more answered; where everybody "
    "always said the same there is none."
)
SPURIOUS = (
    "Grey: spurious by the rule of Grosse et al., ‖a‖₂ / ‖a‖₁ over the sequence’s tokens exceeds 2/3, so that nearly "
    "all of the influence stands on one token."
)


@dataclass(frozen=True)
class Judged:
    """What people said of the sequences of one run: counts[item, (irrelevant, relevant)], unanswered items too."""

    run_id: str
    model: str
    method: str
    counts: np.ndarray
    queries: np.ndarray
    spurious: np.ndarray

    def figures(self) -> tuple[Estimate | None, ...]:
        """The columns of SHARES."""
        answered = self.counts.sum(axis=1) > 0
        return (
            self._relevant(answered),
            self._relevant(answered & ~self.spurious),
            pair_agreement(self.counts, self.queries.tolist()),
            alpha_estimate(self.counts, self.queries.tolist()),
        )

    def _relevant(self, of: np.ndarray) -> Estimate | None:
        if not of.any():
            return None
        counts = self.counts[of]
        return clustered_mean(counts[:, 1] / counts.sum(axis=1), self.queries[of])

    @property
    def n_answered(self) -> int:
        """Items with an answer."""
        return int((self.counts.sum(axis=1) > 0).sum())


def study_annotations(store: Store, command: str) -> Page:
    """Shares of relevant sequences, agreement, and what people wrote; the figures are kept in `evaluations`."""
    with session(store) as connection:
        judged = _judged(connection)
        if not any(of.n_answered for of in judged):
            raise InputError(
                f"store {store.root}",
                expected="answers of people about its sequences",
                found=f"none to {sum(len(of.counts) for of in judged):,} items that were exported",
                remedy="headwater annotate export, then headwater annotate import with the sheets that came back.",
            )
        people = rows(connection, "studies/annotators")
        asked = rows(connection, "studies/annotated_queries")
        tables = [_query(connection, row, judged) for row in asked[:QUERIES]]
    figures = {of.run_id: of.figures() for of in judged if of.n_answered}
    for of in judged:
        if of.n_answered and has_part(store, "runs", of.run_id):
            found = zip(METRICS, figures[of.run_id], strict=True)
            add_figures(store, of.run_id, [(of.method, name, e) for name, e in found if e is not None])
    n_answers = sum(row["n_answers"] for row in people)
    return Page(
        "annotations",
        f"{len(figures)} model{'s' if len(figures) > 1 else ''}",
        "What do people see in the most influential sequences?",
        _lead(judged, figures),
        (
            ("sequences", f"{sum(of.n_answered for of in judged):,}", f"of {sum(len(of.counts) for of in judged):,}"),
            ("answers", f"{n_answers:,}", ""),
            ("people", f"{len(people):,}", ""),
        ),
        (_shares(judged, figures), _people(people), *tables),
        (
            ("store", visible(str(store.root))),
            *((of.run_id, f"{of.model}, {of.method}") for of in judged),
        ),
        (command,),
    )


def _judged(connection: duckdb.DuckDBPyConnection) -> list[Judged]:
    found = rows(connection, "studies/annotation_counts")
    by_run: dict[str, list[dict]] = {}
    for row in found:
        by_run.setdefault(row["run_id"], []).append(row)
    names = [Path(of[0]["model"]).name for of in by_run.values()]
    return [
        Judged(
            run_id,
            name if names.count(name) == 1 else f"{name}, {run_id}",
            of[0]["method"],
            np.array([[row["n_irrelevant"], row["n_relevant"]] for row in of]),
            np.array([row["query_id"] for row in of]),
            np.array([row["is_spurious"] is True for row in of]),
        )
        for (run_id, of), name in zip(by_run.items(), names, strict=True)
    ]


def _lead(judged: Sequence[Judged], figures: dict[str, tuple[Estimate | None, ...]]) -> str:
    said = []
    for of in judged:
        relevant = figures[of.run_id][0] if of.run_id in figures else None
        if relevant is not None:
            said.append(
                f"{relevant.value:.0%} [{relevant.ci_low:.0%}, {relevant.ci_high:.0%}] of {of.n_answered:,} sequences "
                f"that {printable(of.model)} put first"
            )
    return f"People saw something in common with the query in {', in '.join(said)}."


def _shares(judged: Sequence[Judged], figures: dict[str, tuple[Estimate | None, ...]]) -> Block:
    named = {
        f"{printable(of.model)}, {of.n_answered:,} of {len(of.counts):,} answered": figures[of.run_id]
        for of in judged
        if of.n_answered
    }
    relevant = {printable(of.model): e for of in judged if of.n_answered and (e := figures[of.run_id][0]) is not None}
    return Block(
        "Relevant sequences by model",
        estimate_table("Relevant sequences", "model", SHARES, named),
        bars(relevant, "share of relevant sequences"),
        0.9 + 0.45 * len(relevant),
        "Of the sequences that people answered, the share that has something to do with the query.",
        (HOW, ALPHA),
        filled("annotation_counts"),
    )


def _people(people: Sequence[dict]) -> Block:
    found = [
        (
            printable(row["annotator"]),
            (
                f"{row['n_answers']:,}",
                f"{row['share_relevant']:.0%}",
                None if row["agreement"] is None else f"{row['agreement']:.0%}",
                f"{row['n_pairs']:,}",
            ),
        )
        for row in people
    ]
    columns = ("answers", "relevant", "others agree", "pairs")
    return Block(
        "People",
        plain_table("Answers by person", "annotator", columns, found),
        notes=("Others agree: of all pairs of this person’s answers with another’s to the same item.",),
        statement=filled("annotators"),
    )


def _query(connection: duckdb.DuckDBPyConnection, asked: dict, judged: Sequence[Judged]) -> Block:
    query_id, text = asked["query_id"], (asked["prompt"] or "") + (asked["completion"] or "")
    name_of = {of.run_id: of.model for of in judged}
    found = query(connection, "studies/annotated", query=query_id).to_pylist()
    table = Table(
        f"Query {printable(query_id)}",
        "model",
        ("rank", "sequence", "score", "description", "relationship", "annotator"),
        tuple(_answer(row, printable(name_of[row["run_id"]])) for row in found),
        words=("description", "relationship", "annotator"),
    )
    short = printable(" ".join(text.split()))
    return Block(
        short if len(short) <= TITLE else f"…{short[-TITLE:].partition(' ')[2]}",  # the completion is its end
        table,
        notes=(SPURIOUS,) if any(row["is_spurious"] for row in found) else (),
        statement=filled("annotated", query=query_id),
    )


def _answer(row: dict, model: str) -> Row:
    values = (
        f"{row['influence_rank']}", f"{row['sequence_id']}", _score(row["influence"]), printable(row["description"]),
        printable(row["relationship"]), printable(row["annotator"]),
    )  # fmt: skip
    cells = tuple(Cell(value, "", None) for value in values)
    return Row(model, "spurious" if row["is_spurious"] else "", cells, set_aside=row["is_spurious"] is True)


def _score(influence: float) -> str:
    return f"{influence:,.0f}" if influence >= 1000 else f"{influence:.3g}"
