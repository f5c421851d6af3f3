"""Sparsity: is the tail of influences a power law, and how much do the first hold (Grosse et al. 2023, sec. 5.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from storage.database import session
from storage.store import Store
from storage.tables import write_part
from tasks.evaluation.tail_families import FAMILIES, POWER_LAW, TailFit, fit_tails
from tasks.evaluation.tails import MOST, NoTail, PowerLawTail, fit_tail
from tasks.fact_plots import Theme, drawable
from tasks.fact_tables import Table
from tasks.studies.shown import Asked, examine, plain_powers, plain_table, require_gradients, require_layers
from tasks.study_page import Block, Page

RELATION = "tail_fits"
ROWS, PANELS = 3, 9  # of a figure: rows, and queries whose tail is drawn, two in a row where it is narrow
ROOM = 5.0  # inches of a figure that holds three in a row
NAME = 14  # characters of a query's name above its tail
DOTS = 120  # of a tail, evenly spaced by the logarithm of their place
REJECTED = 0.1  # p up to which Clauset et al. reject a law
EXPONENT = (
    "alpha is the exponent of the survival function, P(X ≥ x) = (x / x_min)^−alpha, as in Fig. 8 of Grosse et al.; the "
    "density falls as x^−(alpha + 1). ± is its standard error alpha / √n. p is Clauset’s: the share of samples drawn "
    "from the fitted law that lie farther from their own fit; p ≤ 0.1 rejects it."
)
LAWS = (
    "Akaike’s information criterion (AIC) is 2 · parameters − 2 · log-likelihood in nats; the least is best. A "
    "ratio is the power law’s log-likelihood less the other’s; its p is Vuong’s, small where the laws can be told "
    "apart. Gumbel and GEV have a location of their own, the others begin at x_min. p of a law is given "
    "where one simulation holds for all its parameters."
)


@dataclass(frozen=True)
class Tail:
    """The largest influences on one query, and the laws fitted to them; without a law, the reason."""

    query_id: str
    positive: np.ndarray  # falling
    n_sample: int
    law: PowerLawTail | None
    fits: tuple[TailFit, ...]
    reason: str


def study_sparsity(store: Store, run: str, command: str) -> Page:
    """Fit the laws to every query's tail, fill `tail_fits`, and draw tails and coverage."""
    with session(store) as connection:
        asked = examine(connection, store, run)
        require_gradients(asked)
        found = asked.table("largest")
        require_layers(asked, found)
        tails = [_tail(row) for row in found.to_pylist()]
        _write(store, asked.run_id, tails)
        coverage = asked.table("coverage").to_pylist()
        fitted = [tail for tail in tails if tail.law is not None]
        kept = sum(tail.law.p_value > REJECTED for tail in fitted if tail.law)
        held = [row["share_of_positive_influence"] for row in coverage if row["top_share"] == 0.01]
        held = [value for value in held if value is not None]
        return Page(
            "sparsity",
            asked.run_id,
            "Do a few sequences hold most of the influence?",
            f"The first 1 % of the scored sequences hold {min(held):.0%} to {max(held):.0%} of the positive influence, "
            f"by query. {kept} of {len(fitted)} tails that could be fitted are not told from a power law."
            if held
            else "No query has a sequence that raised it.",
            (
                ("queries", f"{len(tails):,}", ""),
                ("tails fitted", f"{len(fitted):,}", ""),
                ("power laws", f"{kept}", f"not rejected at p ≤ {REJECTED}"),
            ),
            (_laws(asked, tails), _families(asked, fitted), _coverage(asked, coverage)),
            asked.origin(),
            (command,),
        )


def _tail(row: dict) -> Tail:
    positive = np.array(row["positive"] or [], np.float64)
    try:
        law = fit_tail(positive[: MOST + 1].tolist(), row["n_positive"], row["n_sample"])
    except NoTail as error:
        return Tail(row["query_id"], positive, row["n_sample"], None, (), str(error))
    return Tail(row["query_id"], positive, row["n_sample"], law, tuple(fit_tails(positive[: law.n], law.x_min)), "")


def _write(store: Store, run_id: str, tails: list[Tail]) -> None:
    rows = [
        {
            "run_id": run_id,
            "query_id": tail.query_id,
            "family": fit.family,
            "parameters": json.dumps(fit.parameters),
            "x_min": tail.law.x_min,
            "n_tail": tail.law.n,
            "n_sample": tail.n_sample,
            "log_likelihood": fit.log_likelihood,
            "aic": fit.aic,
            "ks_distance": fit.ks_distance,
            "p_value": fit.p_value,
            "ratio": fit.ratio,
            "ratio_p": fit.ratio_p,
        }
        for tail in tails
        if tail.law is not None
        for fit in tail.fits
    ]
    if rows:
        write_part(store, RELATION, run_id, columns={name: [row[name] for row in rows] for name in rows[0]})


def _laws(asked: Asked, tails: list[Tail]) -> Block:
    drawn = [tail for tail in tails if tail.law is not None][:PANELS]

    def draw(canvas: Figure, theme: Theme) -> None:
        columns = min(3 if canvas.get_figwidth() > ROOM else 2, len(drawn))
        shown = drawn[: ROWS * columns]
        grid = canvas.subplots(-(-len(shown) // columns), columns, squeeze=False)
        for axes, tail in zip(grid.flat, shown, strict=False):
            assert tail.law is not None
            n = min(len(tail.positive), 10 * tail.law.n)
            places = np.unique(np.geomspace(1, n, DOTS).astype(int))
            axes.loglog(tail.positive[places - 1], places / tail.n_sample, ".", ms=3, color=theme.colours[0])
            line = np.array([tail.law.x_min, tail.positive[0]])
            share = tail.law.n / tail.n_sample * (line / tail.law.x_min) ** -tail.law.alpha
            axes.loglog(line, share, color=theme.colours[1], lw=1.4)
            name = drawable(tail.query_id)
            name = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
            axes.set_title(f"{name}: {tail.law.alpha:.2f}", loc="left", fontsize=9, color=theme.ink)
            for axis in (axes.xaxis, axes.yaxis):
                plain_powers(axis)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        canvas.supxlabel("influence x, nats", fontsize=9, color=theme.muted)
        canvas.supylabel("share of sequences with x or more", fontsize=9, color=theme.muted)

    rows = [(tail.query_id, _law_cells(tail)) for tail in tails]
    columns = ("alpha", "p", "tail", "x_min", "sequences", "why not")
    height = 2.2 * min(ROWS, -(-len(drawn) // 3)) if drawn else 1.0
    return Block(
        "The tails",
        plain_table("Power laws", "query", columns, rows),
        draw if drawn else None,
        height,
        "Share of the sequences with an influence of x or more, on logarithmic axes; the line is the power law, whose "
        "alpha stands beside the query’s name.",
        (EXPONENT,),
        asked.sql("largest"),
    )


def _law_cells(tail: Tail) -> tuple[str | None, ...]:
    law = tail.law
    if law is None:
        return (None, None, None, None, f"{tail.n_sample:,}", tail.reason)
    return (
        f"{law.alpha:.2f} ± {law.alpha_error:.2f}", f"{law.p_value:.2f}", f"{law.n}", f"{law.x_min:.3g}",
        f"{tail.n_sample:,}", None,
    )  # fmt: skip


def _families(asked: Asked, fitted: list[Tail]) -> Block:
    return Block(
        "Other laws",
        _family_table(fitted),
        notes=(LAWS,),
        statement=f"select * from {RELATION} where run_id = '{asked.run_id}' order by query_id, aic",
    )


def _family_table(fitted: list[Tail]) -> Table:
    names = [POWER_LAW, *FAMILIES]
    best = {name: sum(tail.fits[0].family == name for tail in fitted) for name in names}
    rows = []
    for name in names:
        fits = [fit for tail in fitted for fit in tail.fits if fit.family == name]
        if not fits:
            rows.append((name, ("0", "0", None, None, None)))
            continue
        known = [fit.p_value for fit in fits if fit.p_value is not None]
        worse = sum(fit.ratio > 0 and fit.ratio_p is not None and fit.ratio_p <= 0.05 for fit in fits)
        better = sum(fit.ratio < 0 and fit.ratio_p is not None and fit.ratio_p <= 0.05 for fit in fits)
        rows.append(
            (
                name,
                (
                    f"{len(fits)}",
                    f"{best[name]}",
                    f"{np.median([fit.ks_distance for fit in fits]):.3f}",
                    f"{sum(p <= REJECTED for p in known)} of {len(known)}" if known else None,
                    None if name == POWER_LAW else f"{better} : {worse}",
                ),
            )
        )
    columns = ("fitted", "least AIC", "median distance", "rejected", "better : worse than a power law")
    return plain_table("Laws over the queries", "law", columns, rows)


def _coverage(asked: Asked, coverage: list[dict]) -> Block:
    names = list(dict.fromkeys(row["query_id"] for row in coverage))
    there = [row for row in coverage if row["share_of_positive_influence"] is not None]
    shares = sorted({row["top_share"] for row in coverage})

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        for name in names:
            points = [
                (row["top_share"], row["share_of_positive_influence"]) for row in there if row["query_id"] == name
            ]
            if points:
                axes.semilogx(*zip(*points, strict=True), color=theme.colours[0], lw=1, alpha=0.45)
        axes.axvline(0.01, color=theme.colours[1], lw=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("first share of the scored sequences")
        axes.set_ylabel("share of positive influence")

    rows = []
    for share in shares:
        values = [row["share_of_positive_influence"] for row in there if row["top_share"] == share]
        if values:
            quartiles = np.quantile(values, (0, 0.5, 1))
            rows.append((f"{share:.1%}", tuple(f"{value:.1%}" for value in quartiles)))
    return Block(
        "Coverage",
        plain_table("Share of the positive influence", "first sequences", ("least", "median", "most"), rows),
        draw,
        3.0,
        "A line per query; the vertical one is the first 1 %. Grosse et al. found 12 to 52 % there, of ten million.",
        (
            "Of the scored sequences, which a filter chose unless the run has none; shares are rounded up to whole "
            "sequences; negative influences count nothing.",
        ),
        asked.sql("coverage"),
    )
