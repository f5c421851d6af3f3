"""headwater trace on the command line: every option of the walk, and the answer."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.console import StoreOption, make_console
from flows.options import (
    BadOption,
    BatchOption,
    BlocksOption,
    ClusterOption,
    DampingOption,
    FisherOption,
    FitOption,
    LengthOption,
    ModelOption,
    ModulesOption,
    PackingOption,
    PrecisionOption,
    RevisionOption,
    SchedulerOption,
    TermsOption,
    corpus_words,
    damping_words,
    fit_words,
)
from storage.errors import InputError


def trace(
    store: StoreOption,
    model: ModelOption,
    queries: Annotated[
        str | None, typer.Option(help="JSON lines, or a JSON document, with prompt, completion, query_id")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="what the model was given")] = None,
    completion: Annotated[str | None, typer.Option(help="what it said")] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="corpus files to ingest first, if new")] = None,
    revision: RevisionOption = None,
    sequence_length: LengthOption = None,
    packing: PackingOption = "document",
    bad_documents: BadOption = "refuse",
    method: Annotated[
        str,
        typer.Option(
            help="ekfac, kfac, diagonal, identity (gradient dot), exact, cg, lissa, arnoldi, datainf, tracin, "
            "embedding, tracin+embedding, bm25plus, bm25, tfidf, lucene, random_target or random"
        ),
    ] = "ekfac",
    beside: Annotated[list[str] | None, typer.Option(help="further methods for comparison; may repeat")] = None,
    checkpoints: Annotated[str | None, typer.Option(help="directory of a training's checkpoints, for tracin")] = None,
    first_step: Annotated[int, typer.Option(help="checkpoints of earlier optimizer steps are left out")] = 1,
    parameter_group: Annotated[
        list[str] | None,
        typer.Option(help="of tracin: all (default), embedding, head, blocks, 'block N' or other; may repeat"),
    ] = None,
    normalise: Annotated[str, typer.Option(help="of tracin: unit (cosine), local or none (dot product)")] = "unit",
    weights: Annotated[str, typer.Option(help="of the checkpoints: mean or learning_rate")] = "mean",
    second_moments: Annotated[bool, typer.Option(help="divide gradients by the optimizer's root mean squares")] = False,
    hidden_layer: Annotated[
        list[int] | None, typer.Option(help="layer of the method embedding; 0: the embedding's output; may repeat")
    ] = None,
    solver_sequences: Annotated[
        int, typer.Option(help="of cg, lissa and the like: sequences that G is made of")
    ] = 1000,
    iterations: Annotated[int, typer.Option(help="of cg, at most: each a pass over those sequences")] = 20,
    tolerance: Annotated[float, typer.Option(help="of cg: residual, relative to the gradient, where it stops")] = 0.01,
    lissa_depth: Annotated[int, typer.Option(help="of lissa: terms of the series, at most")] = 2000,
    lissa_batch: Annotated[int, typer.Option(help="of lissa: sequences of the random batch of a term")] = 32,
    lissa_rounds: Annotated[int, typer.Option(help="of lissa: series whose mean is taken")] = 1,
    lissa_alpha: Annotated[float | None, typer.Option(help="of lissa: its step; default: from σ_max")] = None,
    damping: DampingOption = 0.1,
    absolute_damping: Annotated[float | None, typer.Option(help="λ itself, instead")] = None,
    rank: Annotated[int, typer.Option(help="singular directions kept of each query gradient")] = 32,
    rescore: Annotated[int, typer.Option(help="top sequences scored again exactly, with tokens")] = 100,
    filter: Annotated[
        list[str] | None,
        typer.Option(help="bm25 (default), lucene, bm25plus, tfidf, embedding, or none: every sequence; may repeat"),
    ] = None,
    terms: TermsOption = "tokens",
    where: Annotated[
        str | None, typer.Option(help="SQL expression that candidates fulfil, as \"source = 'x' and n_tokens > 50\"")
    ] = None,
    embedding_layer: Annotated[int, typer.Option(help="layer that the embedding filter compares; -1: the last")] = -1,
    skip_broken: Annotated[bool, typer.Option(help="leave out index shards that cannot be read")] = False,
    candidates: Annotated[int, typer.Option(help="sequences that the filter keeps per query")] = 10_000,
    unfiltered: Annotated[int, typer.Option(help="size of a uniform sample scored beside them")] = 0,
    modules: ModulesOption = "mlp",
    fit_sequences: FitOption = 10_000,
    fisher: FisherOption = "sampled",
    blocks: BlocksOption = 1,
    seed: int = 0,
    batch_size: BatchOption = 16,
    precision: PrecisionOption = "auto",
    cluster: ClusterOption = "auto",
    scheduler: SchedulerOption = None,
    top: Annotated[int, typer.Option(help="sequences printed per query")] = 10,
) -> None:
    """The training sequences that raised a completion's probability; runs whatever stage is missing."""
    from flows.parameters import TraceParameters
    from flows.terminal import print_answers, print_next
    from flows.trace import trace as trace_flow
    from storage.prompts import make_prompt, read_prompts

    if (queries is None) == (prompt is None and completion is None):
        raise InputError(
            "query",
            expected="either --queries FILE or --prompt with --completion",
            found="both" if queries else "neither",
            remedy="Give one of them.",
        )
    asked = read_prompts(queries) if queries else [make_prompt(prompt or "", completion or "")]
    parameters = TraceParameters.model_validate(
        {
            "store": store,
            "model": {"name": model, "revision": revision},
            "queries": [
                {"prompt": p.prompt, "completion": p.completion, "query_id": p.query_id,
                 "metadata": json.loads(p.metadata)}
                for p in asked
            ],
            "corpus": corpus_words(corpus or [], sequence_length, packing, bad_documents),
            "candidates": {
                "filters": filter or ["bm25"],
                "terms": terms,
                "top_k": candidates,
                "unfiltered": unfiltered,
                "seed": seed,
                "where": where,
                "embedding_layer": embedding_layer,
                "skip_broken": skip_broken,
            },
            "fit": fit_words(modules, fit_sequences, fisher, blocks, seed),
            "method": {
                "method": method, "beside": beside or [], "damping": damping_words(damping, absolute_damping),
                "rank": rank, "rescore": rescore,
                "trajectory": {
                    "checkpoints": checkpoints, "first_step": first_step, "normalise": normalise, "weights": weights,
                    "parameter_groups": parameter_group or ["all"], "second_moments": second_moments,
                    "hidden_layers": hidden_layer or [0],
                },
                "solver": {
                    "sequences": solver_sequences, "iterations": iterations, "tolerance": tolerance,
                    "depth": lissa_depth, "batch": lissa_batch, "rounds": lissa_rounds, "alpha": lissa_alpha,
                },
            },
            "compute": {"batch_size": batch_size, "precision": precision},
            "cluster": scheduler or cluster,
        }
    )  # fmt: skip
    run_id = trace_flow(parameters)
    print_answers(store, run_id, make_console(), top=top)
    print_next(store, run_id, make_console())
