"""Filter audit stage: what a filter misses, told from the uniform sample that was scored beside its candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.database import part_view, rows, session
from storage.schemas import SCHEMAS
from storage.store import Store
from storage.tables import write_part
from tasks.evaluation.ranking import Estimate
from tasks.evaluation.tails import MOST, NoTail, PowerLawTail, fit_tail, scan_budget, share_of
from tasks.stage import stage

# The sample's top: its largest hundredth, at least ten; sql/macros/filter_audit.sql has the same defaults.
TOP_SHARE, TOP_LEAST = 0.01, 10
WANTED = 10  # influences as large as the filter's tenth that a random scan has to find


@dataclass(frozen=True)
class FilterAudit:
    """One row of `filter_audits`; what could not be told is None, and `reason` says why."""

    run_id: str
    query_id: str
    n_sample: int
    n_top: int
    n_missed: int
    missed_share: float | None
    ci_low: float | None
    ci_high: float | None
    tail_alpha: float | None
    tail_n: int | None
    tail_p: float | None
    threshold: float | None
    scan_budget: float | None
    budget_low: float | None
    budget_high: float | None
    reason: str


@stage("filter audit")
def audit_filter(store: Store, run_id: str, method: str) -> list[FilterAudit]:
    """Write a run's `filter_audits`, one row per query; none without a uniform sample or without a filter.

    Reads the parts `candidates` and `influences` of the run, so that its rows appear when the run does.
    """
    with session(store) as connection:
        part_view(connection, store, "run_candidates", "candidates", run_id)
        part_view(connection, store, "run_influences", "influences", run_id)
        samples = rows(
            connection, "evaluation/filter_samples",
            method=method, share=TOP_SHARE, least=TOP_LEAST, wanted=WANTED, largest=MOST + 1,
        )  # fmt: skip
    audits = [_audit(run_id, sample) for sample in samples]
    if audits:
        columns = {name: [getattr(audit, name) for audit in audits] for name in SCHEMAS["filter_audits"].names}
        write_part(store, "filter_audits", run_id, columns=columns)
    return audits


def _audit(run_id: str, sample: dict[str, Any]) -> FilterAudit:
    missed = share_of(sample["n_missed"], sample["n_top"], "wilson") if sample["n_top"] else None
    tail, no_tail = _tail(sample)
    budget = _budget(sample, tail)
    return FilterAudit(
        run_id,
        sample["query_id"],
        sample["n_sample"],
        sample["n_top"],
        sample["n_missed"],
        missed and missed.value,
        missed and missed.ci_low,
        missed and missed.ci_high,
        tail and tail.alpha,
        tail and tail.n,
        tail and tail.p_value,
        sample["threshold"],
        budget and budget.value,
        budget and budget.ci_low,
        budget and budget.ci_high,
        "; ".join(filter(None, [_basis(sample, tail), no_tail])),
    )


def _tail(sample: dict[str, Any]) -> tuple[PowerLawTail | None, str]:
    """The tail of the sample, or why there is none."""
    try:
        return fit_tail(sample["largest"] or [], sample["n_positive"], sample["n_sample"]), ""
    except NoTail as error:
        return None, f"no tail: {error}"


def _budget(sample: dict[str, Any], tail: PowerLawTail | None) -> Estimate | None:
    if sample["threshold"] is None:
        return None
    return scan_budget(sample["threshold"], sample["n_reaching"], sample["n_sample"], tail, WANTED)


def _basis(sample: dict[str, Any], tail: PowerLawTail | None) -> str:
    """Which share of the corpus the scan budget rests on, or why there is no budget."""
    if sample["threshold"] is None:
        return f"no budget: the filter kept {sample['n_found']} sequences, a tenth influence takes {WANTED}"
    if sample["n_reaching"]:
        return f"empirical share: {sample['n_reaching']} of the sample reach the threshold"
    return f"{'fitted tail' if tail else 'no budget'}: none of the sample reaches the threshold"
