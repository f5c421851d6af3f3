"""Options that several commands have, and what they are in the parameters of a flow."""

from __future__ import annotations

import json
from typing import Annotated

import typer

ModelOption = Annotated[str, typer.Option("--model", help="model directory, or a repository of the hub")]
RevisionOption = Annotated[str | None, typer.Option(help="commit, branch or tag of a hub repository")]
ClusterOption = Annotated[str, typer.Option(help="auto, local, none, or the address of a Dask scheduler")]
SchedulerOption = Annotated[str | None, typer.Option(help="address of a Dask scheduler, tcp://host:port")]
ModulesOption = Annotated[str, typer.Option(help="mlp, attention, all, or a regular expression on module names")]
FitOption = Annotated[int, typer.Option("--fit-sequences", help="sequences that the factors are fitted on")]
FisherOption = Annotated[str, typer.Option(help="labels of the fit: sampled (true Fisher) or empirical")]
BlocksOption = Annotated[int, typer.Option(help="diagonal blocks of A and S: less memory, a coarser basis")]
BatchOption = Annotated[int, typer.Option(help="sequences per scoring pass")]
PrecisionOption = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]
LengthOption = Annotated[int | None, typer.Option(help="tokens per training sequence; default: the context")]
PackingOption = Annotated[str, typer.Option(help="document, or concatenate: sequences may cross documents")]
TermsOption = Annotated[str, typer.Option(help="what lexical filters count: tokens, or words in lower case")]
BadOption = Annotated[str, typer.Option(help="empty and non-UTF-8 documents: refuse or skip")]
DampingOption = Annotated[float, typer.Option(help="λ as a share of each module's mean eigenvalue")]
LayersOption = Annotated[int, typer.Option(help="of a new model: transformer blocks")]
WidthOption = Annotated[int, typer.Option(help="of a new model: dimensions of the residual stream")]
HeadsOption = Annotated[int, typer.Option(help="of a new model: attention heads per block")]
ContextOption = Annotated[int, typer.Option(help="of a new model: tokens in the longest sequence")]
VocabularyOption = Annotated[int, typer.Option(help="of a new model: tokens of its tokenizer, at most")]


def fit_words(modules: str, sequences: int, fisher: str, blocks: int, seed: int) -> dict:
    """The parameters of a fit."""
    return {"modules": modules, "sequences": sequences, "fisher": fisher, "blocks": blocks, "seed": seed}


def query_words(path: str) -> list[dict]:
    """The queries of a file of JSON lines."""
    from storage.prompts import read_prompts

    return [
        {"prompt": p.prompt, "completion": p.completion, "query_id": p.query_id, "metadata": json.loads(p.metadata)}
        for p in read_prompts(path)
    ]


def model_words(name: str | None, revision: str | None) -> dict | None:
    """A model and its revision; none: a new one."""
    return None if name is None else {"name": name, "revision": revision}


def shape_words(layers: int, width: int, heads: int, context: int, vocabulary: int) -> dict:
    """The shape of a new model."""
    return {"layers": layers, "width": width, "heads": heads, "context": context, "vocabulary": vocabulary}


def damping_words(relative: float, absolute: float | None) -> dict:
    """λ, relative or absolute."""
    return {"relative": relative} if absolute is None else {"relative": None, "absolute": absolute}


def corpus_words(inputs: list[str], sequence_length: int | None, packing: str, bad_documents: str) -> dict:
    """Which files are a corpus, and how they are cut."""
    return {
        "inputs": inputs,
        "sequence_length": sequence_length,
        "packing": packing,
        "bad_documents": bad_documents,
    }
