"""What a fact-tracing study found: the figures of each seed's run, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tasks.evaluation.comparison import ALL, SLICES, Column, Summary, seed_values, summarise
from tasks.evaluation.forms import Form

FIRST = 10  # sequences of each method that the model is taught once more
TAUGHT = {"probability": f"tail_patch@{FIRST}", "nats": f"tail_patch_nats@{FIRST}"}
CHOSEN, BASELINE, TRUTH = "chosen", "bm25plus", "truth"
ENOUGH, FEW = 20, 5  # queries in a slice that the first table is about, and that any figure speaks of

Metrics = dict[str, dict[str, float]]  # by metric and query


@dataclass(frozen=True, eq=False)
class RunScores:
    """What one run says of its queries; everything by query id."""

    run_id: str
    slice_of: dict[str, str]
    sizes: dict[str, tuple[int, int]]  # candidates, as documents or sentences, and how many of them are true
    methods: dict[str, Metrics]
    forms: dict[tuple[str, Form], Metrics]
    chosen: dict[str, dict[int, str]]  # of a method, by half: the form that the other half chose
    gradient_norms: dict[str, dict[int, float]]  # by step
    probabilities: dict[str, dict[int, float]]  # by step


def every_metric(scores: RunScores) -> dict[str, Metrics]:
    """Methods and forms under the names that `evaluations` has, with the difference of each MRR to that of BM25+."""
    found = {name: dict(metrics) for name, metrics in scores.methods.items()}
    baseline = scores.methods.get(BASELINE, {}).get("mrr")
    for name, metrics in found.items():
        if baseline is not None and name != BASELINE and "mrr" in metrics:
            metrics[f"mrr_over_{BASELINE}"] = {q: value - baseline[q] for q, value in metrics["mrr"].items()}
    return found | {form.label(method): metrics for (method, form), metrics in scores.forms.items()}


@dataclass(frozen=True, eq=False)
class FactStudy:
    """One run per seed, and what is known of how they were made."""

    name: str  # of the set
    store: str
    runs: tuple[RunScores, ...]
    rows: tuple[dict[str, Any], ...]  # of `runs`, in the same order
    learning_rates: dict[int, float | None]  # by checkpoint of the first run
    n_documents: int
    left_out: Mapping[str, tuple[str, ...]]  # queries, by why
    command: str

    @cached_property
    def summaries(self) -> dict[str, dict[Column, Summary]]:
        """Every metric of every method and form, by slice."""
        tables = [seed_values(run.slice_of, every_metric(run)) for run in self.runs]
        return {of: summarise(tables, of) for of in (ALL, *SLICES)}

    @property
    def slice_sizes(self) -> list[dict[str, int]]:
        """How many queries each seed's training left in each slice."""
        return [{of: list(run.slice_of.values()).count(of) for of in SLICES} for run in self.runs]

    @property
    def main_slice(self) -> str:
        """The slice that tables begin with: what was learned, as in the paper, where that is more than a handful."""
        learned = {query for run in self.runs for query, of in run.slice_of.items() if of == "learned"}
        return "learned" if len(learned) >= ENOUGH else ALL

    @property
    def steps(self) -> list[int]:
        """The checkpoints that were followed, ascending."""
        return sorted(self.learning_rates)

    @property
    def shown_slices(self) -> list[str]:
        """The slices that figures speak of: more than a few queries are in them, and more than a few are not."""
        counts = {of: sum(found[of] for found in self.slice_sizes) for of in ("learned", "known", "never")}
        few, n_all = FEW * len(self.runs), sum(counts.values())
        return [of for of, n in counts.items() if few <= n <= n_all - few]

    def methods(self, of: str) -> list[str]:
        """The methods, forms left out, by falling MRR in a slice."""
        summaries = self.summaries[of]
        found = [name for name in self.runs[0].methods if (name, "mrr") in summaries]
        return sorted(found, key=lambda name: -summaries[name, "mrr"].estimate.value)
