"""Stages of the demo before the walk begins: its corpus as files, its tokenizer, its trained model."""

from __future__ import annotations

from pathlib import Path

from storage.checkpoints import load_tokenizer
from storage.digests import digest_of
from storage.inputs import write_documents
from storage.sequences import all_sequence_ids, corpus_fingerprint, corpus_parts, read_tokens
from storage.store import Store, read_json, write_json
from tasks.demo.corpus import GROUPS, demo_queries
from tasks.learning.greedy import recall
from tasks.learning.model import TrainingParameters, new_model
from tasks.learning.tokenizer import train_tokenizer
from tasks.progress import progress
from tasks.stage import stage
from tasks.training import train

VOCABULARY = 4096  # tokens
RECALL = 0.9  # of the planted facts and passages; training ends once it is reached


@stage("demo corpus")
def write_corpus(directory: Path) -> list[Path]:
    """Write the three corpus files where they are missing; real text of this Python, and planted facts."""
    paths = [directory / "corpus" / f"{name}.parquet" for name in GROUPS]
    with progress("demo corpus", len(paths)) as advance:
        for path, documents in zip(paths, GROUPS.values(), strict=True):
            if not path.exists():
                write_documents(
                    path,
                    [
                        {"document_id": d.document_id, "text": d.text, "source": d.source, **d.metadata}
                        for d in documents()
                    ],
                )
            advance(1)
    return paths


@stage("demo tokenizer")
def prepare_tokenizer(model: Path, parameters: TrainingParameters) -> None:
    """Train the tokenizer on the demo's documents and save it with the model's configuration."""
    if (model / "config.json").exists():
        return
    tokenizer = train_tokenizer((d.text for group in GROUPS.values() for d in group()), VOCABULARY)
    tokenizer.save_pretrained(model)
    new_model(tokenizer, parameters).config.save_pretrained(model)


@stage("training")
def train_model(store: Store, model: Path, parameters: TrainingParameters) -> dict:
    """Train the demo's model on the store's sequences, one sequence a row, until it recalls the planted facts.

    Returns the account of the training; a model that was trained on the same sequences is kept.
    """
    parts = corpus_parts(store)
    made_from = {"corpus": corpus_fingerprint(parts), "parameters": parameters.model_dump()}
    account = model / "training.json"
    if account.exists() and (known := read_json(account))["made_from"] == digest_of(made_from):
        return known
    tokenizer = load_tokenizer(model)
    ids = all_sequence_ids(parts)
    tokens = read_tokens(store, ids)
    pairs = [(q.prompt, q.completion) for q in demo_queries() if q.truth]
    with progress("training", 1000) as advance:
        done = 0

        def report(step: int, steps: int) -> None:
            nonlocal done
            now = 1000 * step // max(steps, 1)
            advance(now - done)
            done = now

        outcome = train(
            [tokens[i] for i in ids.tolist()],
            tokenizer,
            parameters,
            model,
            lambda network: recall(network, tokenizer, pairs),
            RECALL,
            report,
        )
    result = {
        "made_from": digest_of(made_from),
        "recall": outcome.epochs[-1].probe,
        "epochs": len(outcome.epochs),
        "seconds": round(outcome.seconds, 1),
        "reached": outcome.reached,
        "n_sequences": len(ids),
    }
    write_json(account, result)
    return result
