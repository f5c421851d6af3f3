"""Parallel sentences as inputs of `headwater study cross-lingual`, `word-order` and `scale`: taught, paired, and asked.

    python tests/benchmarks/language_inputs.py PARALLEL.parquet --languages en:de:fr:es --work DIR
    headwater train --store DIR/apart --corpus DIR/apart/en.parquet … --model MODEL -o DIR/model
    headwater study cross-lingual --store DIR/apart-store --model DIR/model --sentences DIR/asked.parquet:en:de:fr:es
    headwater train --store DIR/pairs-store --corpus DIR/pairs.parquet --model MODEL -o DIR/translator
    headwater study word-order --store DIR/pairs-store --model DIR/translator --stimuli DIR/taught-pairs.parquet:en:de

PARALLEL has one column for each language; a row is one sentence. The last rows are asked and never taught.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.inputs import write_documents
from storage.translations import cut_in_two


def main() -> None:
    """Write DIR/apart/LANGUAGE.parquet, pairs.parquet, taught-pairs.parquet, asked.parquet and queries.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parallel", type=Path, help="Parquet, a column of text for each language")
    parser.add_argument("--languages", default="en:de:fr:es", help="columns; the first two are paired")
    parser.add_argument("--work", type=Path, required=True, help="directory to write to")
    parser.add_argument("--asked", type=int, default=40, help="rows that are asked and not taught, the last ones")
    parser.add_argument("--taught", type=int, default=600, help="rows whose sentences are taught apart")
    parser.add_argument("--pairs", type=int, default=200, help="rows taught as a sentence and its translation")
    parser.add_argument("--longest", type=int, default=120, help="characters of a sentence in its longest language")
    parser.add_argument("--pair", type=int, default=160, help="characters of a pair of sentences, at most")
    asked = parser.parse_args()
    languages = asked.languages.split(":")
    first, second = languages[:2]
    table = pq.read_table(asked.parallel, columns=languages).to_pylist()
    rows = [row for row in table if all(row.values()) and max(map(len, row.values())) <= asked.longest]
    held_out, taught = rows[-asked.asked :], rows[: -asked.asked][: asked.taught]
    pairs = [row for row in taught if len(row[first]) + len(row[second]) <= asked.pair][: asked.pairs]
    asked.work.mkdir(parents=True, exist_ok=True)
    for name in languages:
        documents = [{"document_id": f"{name}-{k:04d}", "text": row[name]} for k, row in enumerate(taught)]
        write_documents(asked.work / "apart" / f"{name}.parquet", documents)
    paired = [
        {"document_id": f"{first}-{second}-{k:04d}", "text": f"{row[first]} {row[second]}"}
        for k, row in enumerate(pairs)
    ]
    write_documents(asked.work / "pairs.parquet", paired)
    for name, chosen in (("taught-pairs", pairs), ("asked", held_out)):
        pq.write_table(pa.table({column: [row[column] for row in chosen] for column in languages}),
                       asked.work / f"{name}.parquet")  # fmt: skip
    with open(asked.work / "queries.jsonl", "w", encoding="utf-8") as lines:
        for k, row in enumerate(held_out):
            prompt, completion = cut_in_two(row[first])
            record = {"query_id": f"asked-{k}", "group": first, "prompt": prompt, "completion": completion}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"{len(rows):,} of {len(table):,} rows are short enough: {len(taught):,} taught apart in {len(languages)} "
          f"languages, {len(pairs):,} of them paired, {len(held_out):,} asked")  # fmt: skip


if __name__ == "__main__":
    main()
