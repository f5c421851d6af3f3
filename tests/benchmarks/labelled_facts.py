"""The demo's planted facts as documents that have an answer: what `headwater evaluate mislabelled-text` looks into.

    python tests/benchmarks/labelled_facts.py facts.parquet [--asked]
    headwater evaluate mislabelled-text facts.parquet --within relation --directory DIR

Every fact is said in thirty wordings, so that a document with another answer contradicts the others. In a fifth of them
the answer stands before its subject, where nothing tells a right one from a wrong one yet; `--asked` leaves these out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from storage.inputs import write_documents
from tasks.demo.facts import facts, utterances


def main() -> None:
    """Write one document for each wording of each fact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="Parquet file to write")
    parser.add_argument("--asked", action="store_true", help="only wordings that name the subject before the answer")
    asked = parser.parse_args()
    records = [
        {"document_id": f"{fact.fact_id}/{k}", "text": text, "answer": fact.answer, "relation": fact.relation}
        for fact in facts()
        for k, text in enumerate(utterances(fact), start=1)
        if not asked.asked or text.index(fact.subject) < text.index(fact.answer)
    ]
    write_documents(asked.path, records)
    print(f"{len(records):,} documents in {asked.path}")


if __name__ == "__main__":
    main()
