"""Layers: where in the network the sequences act that raised each query most (Grosse et al. 2023, Figs. 17 and 18)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from storage.database import session
from storage.store import Store
from tasks.fact_plots import Theme
from tasks.studies.shown import Asked, examine, heat_map, plain_table, require_layers
from tasks.study_page import Block, Page

HOW = (
    "A layer’s share is its part of a sequence’s positive influence: max(influence, 0) over the sum of those of all "
    "layers, so that the shares of one sequence sum to 1. The centre of mass is the mean layer, weighted by shares."
)
LINES = 120  # of the heat map


def study_layers(store: Store, run: str, k: int, command: str) -> Page:
    """Shares of the layers over the k sequences that raised each query most; tasks/studies/themes.py groups them."""
    with session(store) as connection:
        asked = examine(connection, store, run)
        found = asked.table("layer_distribution", k=k)
        require_layers(asked, found)
        layers = sorted(set(found["layer"].to_pylist()))
        shares = np.reshape(found["share"].to_numpy(), (-1, len(layers)))
        centres = np.reshape(found["centre_of_mass"].to_numpy(), shares.shape)[:, 0]
        return Page(
            "layers",
            asked.run_id,
            "Where in the network do the influential sequences act?",
            f"{len(shares):,} sequences, at most {k} for each query: the mean share of a layer runs from "
            f"{shares.mean(0).min():.2f} to {shares.mean(0).max():.2f}, where an even spread would give "
            f"{1 / len(layers):.2f}.",
            (
                ("sequences", f"{len(shares):,}", ""),
                ("layers", f"{len(layers)}", ""),
                ("mean centre of mass", f"{centres.mean():.2f}", f"of 0 to {layers[-1]}"),
            ),
            (_overall(asked, k, layers, shares), _sorted(asked, k, layers, shares)),
            asked.origin(),
            (command,),
        )


def _overall(asked: Asked, k: int, layers: list[int], shares: np.ndarray) -> Block:
    mean = shares.mean(0)

    def draw(canvas: Figure, theme: Theme) -> None:
        axes = canvas.subplots()
        axes.bar(range(len(layers)), mean, color=theme.colours[0], width=0.7)
        axes.axhline(1 / len(layers), color=theme.muted, lw=1, ls="--")
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xlabel("layer")
        axes.set_ylabel("mean share of positive influence")
        axes.grid(axis="x", visible=False)

    rows = [(f"layer {layer}", (f"{share:.3f}",)) for layer, share in zip(layers, mean, strict=True)]
    return Block(
        "All queries",
        plain_table("Mean shares", "layer", ("share",), rows),
        draw,
        2.6,
        f"Mean over each query’s first {k} sequences; the line is an even spread.",
        (HOW,),
        asked.sql("layer_distribution", k=k),
    )


def _sorted(asked: Asked, k: int, layers: list[int], shares: np.ndarray) -> Block:
    lines = np.array([some.mean(0) for some in np.array_split(shares, min(len(shares), LINES))])
    draw = heat_map(lines, [], [str(n) for n in layers], "layer", "sequences by centre of mass", "share")
    each = -(-len(shares) // len(lines))
    return Block(
        "Sequence by sequence",
        None,
        draw,
        4.0,
        "The lower in the network a sequence’s centre of mass, the higher it stands; "
        + ("a line is a sequence." if each == 1 else f"a line is the mean of {each} sequences or one less."),
        ("A diagonal says that single sequences act in few layers even where their mean is even.",),
        asked.sql("layer_distribution", k=k),
    )
