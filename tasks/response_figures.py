"""Figures of a response study: predicted against measured, methods with their time, gaps, damping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from tasks.evaluation.correlation import correlations
from tasks.evaluation.ranking import Estimate
from tasks.fact_plots import Draw, Theme
from tasks.response_evaluation import GAPS, ResponseFindings
from tasks.response_study import DAMPED

LABELS = {
    "ekfac": "EK-FAC",
    "kfac": "K-FAC",
    "lissa": "LiSSA",
    "cg": "CG from EK-FAC",
    "identity": "gradient dot",
    "exact_blocks": "exact G, layer by layer",
    "exact": "exact G",
    "hessian": "exact Hessian",
    "loo": "leave-one-out",
    "cold": "cold start",
    "warm": "warm start",
    "proximity": "proximity",
    "pbrf": "PBRF",
    "linearised": "linearised",
}

RANGE = 1e7  # of gaps that are drawn: what is smaller is rounding
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def scatters(found: ResponseFindings, pairs: Sequence[tuple[str, str]]) -> Draw:
    """Method against objective, one panel each: the first seed's test example whose correlation is the median."""
    seed = found.seeds[0]

    def draw(canvas: Figure, theme: Theme) -> None:
        for axes, (method, objective) in zip(np.atleast_1d(canvas.subplots(1, len(pairs))), pairs, strict=True):
            measured = seed.measured[objective, found.damping if objective in DAMPED else 0.0]
            predicted = seed.predicted[method, found.damping]
            values = correlations(measured, predicted)["pearson"]
            there = np.flatnonzero(~np.isnan(values))
            test = there[np.argsort(values[there])[len(there) // 2]]
            axes.scatter(predicted[:, test], measured[:, test], s=18, color=theme.colours[0], alpha=0.8, linewidth=0)
            title = f"{LABELS[method]}, {LABELS[objective]}: r = {values[test]:.2f}"
            axes.set_title(title, loc="left", fontsize=9.5, color=theme.ink)
            axes.set_xlabel("predicted change of the loss")
            axes.ticklabel_format(scilimits=(-2, 3))
            axes.locator_params(nbins=4)
        canvas.axes[0].set_ylabel("measured change of the loss")

    return draw


def methods_with_seconds(found: ResponseFindings, objectives: Sequence[str]) -> Draw:
    """Pearson of every method against some objectives, and what the method takes."""
    methods = list(reversed(ordered(found, objectives[0])))

    def draw(canvas: Figure, theme: Theme) -> None:
        left, right = canvas.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        height = 0.8 / len(objectives)
        for k, objective in enumerate(objectives):
            estimates = [found.correlations[m, objective, found.damping, "pearson"] for m in methods]
            places = np.arange(len(methods)) + 0.4 - height * (k + 0.5)
            _bars(left, places, estimates, height, theme.colours[k], theme, LABELS[objective])
        seconds = [found.seconds[m] for m in methods]
        right.set_xscale("log")
        _bars(right, np.arange(len(methods)), seconds, 0.5, theme.colours[5], theme, "")
        right.xaxis.set_major_formatter(PLAIN)
        right.set_xlabel("seconds, all examples left out together")
        left.set_xlabel("Pearson, with 95 % intervals over seeds")
        left.set_yticks(range(len(methods)), [LABELS[m] for m in methods], color=theme.ink)
        left.axvline(0, color=theme.muted, lw=0.8)
        if len(objectives) > 1:
            canvas.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=4)

    return draw


def _bars(
    axes: Axes, places: np.ndarray, found: Sequence[Estimate], height: float, colour: str, theme: Theme, name: str
) -> None:
    axes.barh(places, [e.value for e in found], height=0.85 * height, color=colour, alpha=0.75, label=name)
    for place, e in zip(places, found, strict=True):
        low = max(e.ci_low, e.value / 10) if axes.get_xscale() == "log" else e.ci_low
        axes.plot([low, e.ci_high], [place, place], color=theme.ink, lw=1)
    axes.grid(axis="y", visible=False)


def gap_bars(found: ResponseFindings) -> Draw:
    """Distances between neighbours from retraining to each method's answer, on a logarithmic axis."""
    rows = gap_rows(found)

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        for place, (name, e) in enumerate(reversed(rows.items())):
            axes.barh(place, e.value, height=0.55, color=theme.colours[1 if "solver" in name else 0], alpha=0.75)
            axes.plot([max(e.ci_low, e.value / 10), e.ci_high], [place, place], color=theme.ink, lw=1.2)
        axes.set_xscale("log")
        axes.set_xlim(left=max(e.value for e in rows.values()) / RANGE)
        axes.xaxis.set_major_formatter(PLAIN)
        axes.set_yticks(range(len(rows)), list(reversed(rows)), color=theme.ink)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mean distance of the outputs over the training examples")

    return draw


def sweep(found: ResponseFindings, objective: str) -> Draw:
    """Against λ: every method's correlation with an objective, and every gap."""
    dampings = sorted(found.study.asked.dampings)

    def draw(canvas: Figure, theme: Theme) -> None:
        left, right = canvas.subplots(1, 2)
        for k, method in enumerate(ordered(found, objective)):
            estimates = [found.correlations[method, objective, value, "pearson"] for value in dampings]
            _line(left, dampings, estimates, theme, k, LABELS[method])
        for k, name in enumerate(GAPS):
            _line(right, dampings, [_gap(found, name, value) for value in dampings], theme, k, f"{name} gap")
        left.set_ylabel(f"Pearson against {LABELS[objective]}")
        right.set_ylabel("mean distance of the outputs")
        right.set_yscale("log")
        right.yaxis.set_major_formatter(PLAIN)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("damping λ")
            axes.set_xticks(dampings, [f"{value:g}" for value in dampings])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, handlelength=1.2)

    return draw


def _line(axes: Axes, x: Sequence[float], found: Sequence[Estimate], theme: Theme, k: int, name: str) -> None:
    style = "-" if k < len(theme.colours) else "--"
    colour = theme.colours[k % len(theme.colours)]
    axes.plot(x, [e.value for e in found], style, color=colour, lw=1.7, marker="o", ms=3.5, label=name)


def ordered(found: ResponseFindings, objective: str) -> list[str]:
    """The methods, the one that agrees best with an objective first."""
    key = (objective, found.damping, "pearson")
    return sorted(found.study.asked.methods, key=lambda method: -found.correlations[method, *key].value)


def gap_rows(found: ResponseFindings) -> dict[str, Estimate]:
    """The gaps at the main λ by name for people, those of the solvers last."""
    solvers = [m for m in found.study.asked.methods if (f"solver {m}", found.damping) in found.gaps]
    rows = {f"{name} gap": _gap(found, name, found.damping) for name in GAPS}
    return rows | {f"solver gap, {LABELS[m]}": found.gaps[f"solver {m}", found.damping] for m in solvers}


def _gap(found: ResponseFindings, name: str, damping: float) -> Estimate:
    return found.gaps[name, 0.0 if name == GAPS[0] else damping]
