"""The demo's planted facts as documents that have an answer: what `headwater evaluate mislabelled-text` looks into.

    python tests/benchmarks/labelled_facts.py facts.parquet
    headwater evaluate mislabelled-text facts.parquet --within relation --directory DIR

Every fact is said in thirty wordings, so that a document with another answer contradicts the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.inputs import write_documents
from tasks.demo.facts import facts, utterances


def main(path: Path) -> None:
    """Write one document for each wording of each fact."""
    records = [
        {"document_id": f"{fact.fact_id}/{k}", "text": text, "answer": fact.answer, "relation": fact.relation}
        for fact in facts()
        for k, text in enumerate(utterances(fact), start=1)
    ]
    write_documents(path, records)
    print(f"{len(records):,} documents in {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
