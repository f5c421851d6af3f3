"""The answer of `headwater check`: what is covered, what a trace will take, how far its numbers can be trusted."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from storage.checkpoints import context_length, load_model
from storage.prompts import stored_prompts
from storage.store import Store
from tasks.agreement import KEPT, check_gradients, measure_agreement, sample_sequences
from tasks.compute import ComputeParameters, dtype_of
from tasks.factors import FitParameters
from tasks.influence.errors import InfluenceError
from tasks.influence.modules import coverage, select_modules
from tasks.machine import GIB
from tasks.plan import PlannedStage, Rates, Workload, measure_rates, plan, require_fit

DISAGREEMENT = 1e-3  # relative; float32 sums over a sequence differ by a thousandth of that


def print_coverage(model: Path, expression: str, console: Console) -> None:
    """The coverage table of a model: every parameter once, in or out, and why."""
    network = load_model(model)
    tracked = select_modules(network, expression)
    covered = coverage(network, tracked, expression)
    total = sum(row.parameters for row in covered) or 1
    table = _table("module", ">layer", "kind", ">parameters", ">share", "tracked", "reason")
    for row in covered:
        layer = "·" if row.layer < 0 else str(row.layer)
        mark = Text("yes", "green") if row.tracked else Text("no", "dim")
        share = f"{row.parameters / total:.1%}"
        table.add_row(row.module, layer, row.kind, f"{row.parameters:,}", share, mark, Text(row.reason))
    console.print(table)
    inside = sum(row.parameters for row in covered if row.tracked)
    console.print(f"{inside:,} of {total:,} parameters are attributed ({inside / total:.1%}), {len(tracked)} modules")


def print_plan(
    model: Path, work: Workload, fit: FitParameters, compute: ComputeParameters, room: int, console: Console
) -> None:
    """The plan of a trace; refused with an error where a stage passes `room` bytes."""
    modules = select_modules(load_model(model), fit.modules)
    rates = measure_rates(model, modules, work.positions, compute)
    stages = plan(model, modules, work, fit, compute, rates)
    console.print()
    table = _table("stage", ">passes", ">tokens", ">seconds", ">memory", ">disk")
    for stage in stages:
        table.add_row(
            stage.stage,
            str(stage.passes) if stage.passes else "·",
            f"{stage.tokens:,}" if stage.tokens else "·",
            f"{stage.seconds:,.0f}" if stage.seconds >= 10 else f"{stage.seconds:.1f}",
            _bytes(stage.memory_bytes),
            _bytes(stage.disk_bytes),
        )
    console.print(table)
    console.print(_summary(stages, work, rates, compute, room))
    require_fit(stages, compute, room)


def _summary(stages: list[PlannedStage], work: Workload, rates: Rates, compute: ComputeParameters, room: int) -> str:
    seconds = sum(stage.seconds for stage in stages)
    name = str(dtype_of(compute)).removeprefix("torch.")
    return (
        f"about {_time(seconds)} with one worker for {work.fit_sequences:,} fitted and {work.candidates:,} scored "
        f"sequences of {work.positions:,} tokens and {work.queries:,} queries, at {1 / rates.seconds_per_token:,.0f} "
        f"tokens a second in {name} here · {room / GIB:.1f} GiB are free"
    )


def print_agreement(
    store: Store, model: Path, fit: FitParameters, compute: ComputeParameters, rank: int, sample: int, console: Console
) -> None:
    """How far precision, batch size, attention kernel, rank and blocks move the scores of a sample."""
    table = _table("against float32", ">Spearman", ">lowest", f">top {KEPT} shared", ">largest gap")
    for row in measure_agreement(store, model, stored_prompts(store), fit, compute, rank, sample):
        table.add_row(
            row.variant,
            f"{row.spearman_mean:.5f}",
            f"{row.spearman_lowest:.5f}",
            f"{row.top_shared:.0%}",
            f"{row.largest_difference:.1e}",
        )
    console.print()
    console.print(table)
    console.print(
        f"on at most {sample} sequences, factors fitted on the same; "
        "the gap is relative to the largest score of its query"
    )


def print_gradient_check(model: Path, modules: str, store: Store | None, console: Console) -> None:
    """Whether the hooks see what autograd sees."""
    if store:
        longest = max(sample_sequences(store, 8, 0), key=lambda s: len(s.token_ids))
        tokens = list(longest.token_ids)
    else:
        vocabulary = load_model(model).get_input_embeddings().weight.shape[0]
        tokens = [(7 * k + 1) % vocabulary for k in range(min(64, context_length(model)))]
    found = check_gradients(model, modules, tokens)
    if not found.difference < DISAGREEMENT:
        raise InfluenceError(
            f"module {found.module}: expected a gradient within {DISAGREEMENT} of autograd's on its weight, found a "
            f"relative difference of {found.difference:.1e}: the model uses it in a way that hooks do not see. "
            "Leave it out of --modules."
        )
    console.print(
        f"sequence gradients of {found.modules} modules agree with autograd's on the weights to "
        f"{found.difference:.1e} (worst: {found.module})"
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def _bytes(n: int) -> str:
    if not n:
        return "·"
    return f"{n / GIB:,.2f} GiB" if n >= GIB / 10 else f"{n / 2**20:,.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
