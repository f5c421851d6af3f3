"""Fact-tracing sets on the command line, and the training of a model on one or on any corpus."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from flows.console import shell_word
from flows.options import (
    ClusterOption,
    ContextOption,
    HeadsOption,
    LayersOption,
    LengthOption,
    PackingOption,
    RevisionOption,
    VocabularyOption,
    WidthOption,
    model_words,
    shape_words,
)

fact_set_app = typer.Typer(no_args_is_help=True, help="Sets of facts, of documents that state them, and of queries.")
ENTITIES = 100  # a small model learns their 1,000 facts in minutes on two CPU cores
TEST_SHARE = 0.1
# What teaches them: of 100 queries the default GPT-2 named the right entity first in 5 after 3 epochs, in 47 after 6
# and in 100 after 12, in the very surface that was held out in 1, 2 and 10. Loss fell from 1.61 to 1.10 nats per token.
LESSON = "--epochs 12 --batch-size 64"


@fact_set_app.command()
def synth(
    output: Annotated[str, typer.Option("--output", "-o", help="directory of the set; a new one")],
    entities: Annotated[int, typer.Option(help="with ten facts each; 5,000 were published", min=2)] = ENTITIES,
    form: Annotated[
        Literal["causal", "masked"], typer.Option(help="causal: plain text; masked: with what the masks stand for")
    ] = "causal",
    test_share: Annotated[
        float, typer.Option(help="of the facts that are asked for; .1 was published", min=0.001, max=1.0)
    ] = TEST_SHARE,
    seed: Annotated[int, typer.Option(help="of facts, held-out utterances and pairs", min=0)] = 0,
) -> None:
    """FTRACE-SYNTH: invented facts about numbered entities, which no model can know beforehand."""
    import pyarrow as pa

    from storage.fact_sets import read_fact_set, write_fact_set
    from tasks.evaluation.ftrace_synth import documents, make_set, queries

    made = make_set(entities, seed, test_share)
    tables = (pa.table(batch) for batch in documents(made, form))
    folder = write_fact_set(
        output, tables, pa.table(queries(made, form)), collapse="pair" if form == "masked" else None
    )
    found = read_fact_set(folder)
    n_documents = len(made.pairs) * (4 if form == "masked" else 1)
    typer.echo(
        f"{len(made.facts):,} facts in {n_documents:,} documents, {len(found.queries):,} queries about "
        f"{len(made.held_out):,} of them, in {folder}"
    )
    typer.echo(
        f"next  headwater evaluate fact-tracing --set {shell_word(str(folder))} --store S {LESSON} "
        f"--context {64 if form == 'masked' else 32}"
    )


def train(
    store: Annotated[str, typer.Option("--store", help="directory of the store whose sequences are taught")],
    output: Annotated[str, typer.Option("--output", "-o", help="where the trained model goes, with its checkpoints")],
    corpus: Annotated[list[str] | None, typer.Option(help="corpus files to ingest first, if new")] = None,
    model: Annotated[str | None, typer.Option(help="model to begin with; none: a new one, untrained")] = None,
    revision: RevisionOption = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="model whose tokenizer a new one takes; none: one is made of the corpus")
    ] = None,
    layers: LayersOption = 4,
    width: WidthOption = 128,
    heads: HeadsOption = 4,
    context: ContextOption = 128,
    vocabulary: VocabularyOption = 4096,
    sequence_length: LengthOption = None,
    packing: PackingOption = "document",
    epochs: Annotated[int, typer.Option(help="passes over the sequences")] = 5,
    batch_size: Annotated[int, typer.Option(help="sequences per optimizer step")] = 8,
    learning_rate: Annotated[float, typer.Option(help="peak of Adam's step size")] = 2e-3,
    checkpoints: Annotated[
        int | None, typer.Option(help="so many, each at twice the step of the one before; default: every epoch")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the order of sequences, and of a new model's weights")] = 0,
    cluster: ClusterOption = "none",
) -> None:
    """Teach a model a corpus, from scratch or further; a training that was stopped goes on from its last checkpoint."""
    from flows.training import TrainParameters
    from flows.training import train as train_flow

    shape = shape_words(layers, width, heads, context, vocabulary)
    parameters = TrainParameters.model_validate(
        {
            "store": store,
            "directory": output,
            "start": model_words(model, revision),
            "tokenizer": model_words(tokenizer, None),
            "shape": shape,
            "corpus": {"inputs": corpus or [], "sequence_length": sequence_length, "packing": packing},
            "training": {
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "checkpoints": checkpoints,
                "seed": seed,
            },
            "cluster": cluster,
        }
    )
    report = train_flow(parameters)
    for leg in report.legs[1:]:
        typer.echo(f"step {leg.step:>6,}  epoch {leg.epoch:6.2f}  rate {leg.learning_rate:.1e}  loss {leg.loss:.4f}")
    typer.echo(
        f"{report.n_sequences:,} sequences in {report.seconds:.0f} s; {len(report.legs)} checkpoints in {output}"
    )
    typer.echo(
        f"next  headwater trace --store {shell_word(store)} --model {shell_word(output)} --prompt … --completion …"
    )
