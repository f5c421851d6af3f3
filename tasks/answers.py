"""Where a document's answer stands: in its text as whole words, and among the tokens of its sequences.

A sequence that counts its answer's tokens alone is a query with the text before as its prompt: the rest of the text is
what a model of any kind finds hard to foresee, whether the answer is right or wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.checkpoints import load_tokenizer
from storage.database import rows, session
from storage.errors import MismatchError
from storage.store import Store
from tasks.influence.batches import TokenSequence


def standing(answer: str) -> re.Pattern[str]:
    """The answer where it stands as whole words: entity-1 does not stand in entity-12."""
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")


@dataclass(frozen=True)
class Answer:
    """A sequence that counts the tokens of its document's answer alone."""

    document_id: str
    sequence: TokenSequence


def read_answers(store: Store, model: Path, first: int, last: int) -> list[Answer]:
    """The sequences with ids from `first` to `last`, ascending, counting the tokens of what their document answers.

    A token that straddles an end of the answer counts, as it does of a query; a sequence without any counts nothing,
    nor does the first token of a sequence, which nothing predicts. Documents are cut one by one.
    """
    with session(store) as connection:
        found = rows(connection, "validation/answers", first=first, last=last)
    texts = {row["document_id"]: row["text"] for row in found}
    encoded = load_tokenizer(model)(list(texts.values()), return_offsets_mapping=True, verbose=False)
    tokens = dict(zip(texts, zip(encoded["input_ids"], encoded["offset_mapping"], strict=True), strict=True))
    answers = []
    for row in found:
        ids, offsets = tokens[row["document_id"]]
        piece = slice(row["first_token"], row["first_token"] + len(row["token_ids"]))
        if ids[piece] != row["token_ids"]:
            raise MismatchError(
                f"sequence {row['sequence_id']} of store {store.root}",
                expected=f"tokens {piece.start:,} to {piece.stop:,} of document {row['document_id']!r}",
                found="others: its corpus was cut by another tokenizer, or across documents",
                remedy="Cut the corpus document by document, with the tokenizer of the model.",
            )
        counted = answer_positions(row["said"], row["text"], offsets[piece])
        answers.append(Answer(row["document_id"], TokenSequence(row["sequence_id"], row["token_ids"], counted=counted)))
    return answers


def answer_positions(answer: str | None, text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Which tokens of the text, whose first and last character `offsets` gives, say a part of the answer."""
    if answer is None:
        return []
    spans = [found.span() for found in standing(answer).finditer(text)]
    return [k for k, (start, end) in enumerate(offsets) if any(start < last and end > first for first, last in spans)]
