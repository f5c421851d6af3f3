"""A corpus cut in two for `headwater evaluate lds`: documents that are taught, and others whose words are asked for.

    python tests/benchmarks/retraining_inputs.py CORPUS --work DIR
    headwater evaluate lds --store DIR/store --corpus DIR/taught.parquet --queries DIR/queries.jsonl --model MODEL

CORPUS is any corpus file that headwater reads; without one it is Python's own reference, which every Python carries.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from storage.inputs import Document, find_inputs, read_documents, write_documents
from tasks.demo.corpus import language_reference


def main() -> None:
    """Write DIR/taught.parquet and DIR/queries.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", help="Parquet, JSONL or text; none: Python's reference")
    parser.add_argument("--work", type=Path, required=True, help="directory to write to")
    parser.add_argument("--documents", type=int, default=100, help="the first documents, which are taught")
    parser.add_argument(
        "--queries", type=int, default=40, help="the last documents, of which one passage each is asked"
    )
    parser.add_argument("--prompt", type=int, default=60, help="characters before the completion, at least")
    parser.add_argument("--completion", type=int, default=160, help="characters of the completion, at most")
    asked = parser.parse_args()
    texts = list(_documents(asked.corpus))
    long_enough = [
        (name, text) for name, text in texts[asked.documents :] if len(text) > asked.prompt + asked.completion
    ]
    taught, held_out = texts[: asked.documents], long_enough[-asked.queries :]
    write_documents(asked.work / "taught.parquet", [{"document_id": name, "text": text} for name, text in taught])
    with open(asked.work / "queries.jsonl", "w", encoding="utf-8") as lines:
        for name, text in held_out:
            passage = text[: asked.prompt + asked.completion].rsplit(maxsplit=1)[0]
            cut = next(k for k in range(asked.prompt, len(passage)) if passage[k].isspace())
            record = {"query_id": name, "prompt": passage[:cut], "completion": passage[cut:]}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"{len(taught):,} documents and {len(held_out):,} queries in {asked.work}")


def _documents(corpus: str | None) -> list[tuple[str, str]]:
    if corpus is None:
        return [(document.document_id, document.text) for document in language_reference()]
    batches = (batch for file in find_inputs([corpus]) for batch in read_documents(file))
    return [(found.document_id, found.text) for batch in batches for found in batch if isinstance(found, Document)]


if __name__ == "__main__":
    main()
