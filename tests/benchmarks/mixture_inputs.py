"""Datasets and held-out queries for `headwater evaluate untrac`, cut from corpora: one file each, one group each.

    python tests/benchmarks/mixture_inputs.py stories=tinystories.parquet german=parallel.parquet:de … --work DIR
    headwater evaluate untrac --store DIR/store --queries DIR/queries.jsonl --model MODEL \\
      $(printf -- '--corpus %s ' DIR/taught/*.parquet)

A dataset is NAME=FILE, or NAME=FILE:COLUMN where the text stands in another column than `text`. The first documents are
taught, up to so many characters; of the last ones one passage each is asked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq

from storage.inputs import write_documents


def main() -> None:
    """Write DIR/taught/NAME.parquet for each dataset, and DIR/queries.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="NAME=FILE or NAME=FILE:COLUMN, Parquet")
    parser.add_argument("--work", type=Path, required=True, help="directory to write to")
    parser.add_argument("--characters", type=int, default=6000, help="of each dataset that are taught, at least")
    parser.add_argument("--piece", type=int, default=600, help="characters that a document is cut down to")
    parser.add_argument("--queries", type=int, default=8, help="passages of each dataset that are asked")
    parser.add_argument("--prompt", type=int, default=40, help="characters before the completion, at least")
    parser.add_argument("--completion", type=int, default=100, help="characters of the completion, at most")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    lines = []
    for given in asked.datasets:
        name, _, where = given.partition("=")
        path, _, column = where.partition(":")
        texts = [text for text in pq.read_table(path, columns=[column or "text"])[0].to_pylist() if text.strip()]
        taught, total = [], 0
        for text in texts:
            if total >= asked.characters:
                break
            piece = text[: asked.piece].rsplit(maxsplit=1)[0]
            taught.append({"document_id": f"{name}-{len(taught):04d}", "text": piece})
            total += len(piece)
        write_documents(asked.work / "taught" / f"{name}.parquet", taught)
        whole = asked.prompt + asked.completion
        passages = [text[:whole].rsplit(maxsplit=1)[0] for text in texts[len(taught) :] if len(text) > whole]
        for k, passage in enumerate(passages[-asked.queries :]):
            cut = next(place for place in range(asked.prompt, len(passage)) if passage[place].isspace())
            record = {"query_id": f"{name}-{k}", "group": name, "prompt": passage[:cut], "completion": passage[cut:]}
            lines.append(json.dumps(record, ensure_ascii=False))
        print(f"{name}: {len(taught):,} documents of {total:,} characters, {min(len(passages), asked.queries)} queries")
    (asked.work / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
