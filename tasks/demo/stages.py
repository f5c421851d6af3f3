"""Stages of the demo before the walk begins: its corpus as files, its trained model."""

from __future__ import annotations

from pathlib import Path

from storage.inputs import write_documents
from storage.store import Store
from tasks.demo.corpus import GROUPS, demo_queries
from tasks.learning.greedy import recall
from tasks.learning.loop import TrainingParameters
from tasks.progress import progress
from tasks.stage import stage
from tasks.training import TrainingReport, teach

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


@stage("training")
def train_model(store: Store, start: Path, parameters: TrainingParameters, directory: Path) -> TrainingReport:
    """Train the demo's model on the store's sequences, one sequence a row, until it recalls the planted facts."""
    pairs = [(q.prompt, q.completion) for q in demo_queries() if q.truth]
    return teach(store, start, parameters, directory, lambda model, tokenizer: recall(model, tokenizer, pairs), RECALL)
