"""Swapped-answers stage: a corpus in which some documents say another document's answer.

A document has its answer in its text and in a field of its own; where both agree, every place of the answer in the text
is given the answer of another document. What was swapped stands in the documents' metadata, so SQL can ask for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from storage.errors import InputError
from storage.inputs import Document, find_inputs, read_documents, write_documents
from tasks.answers import standing
from tasks.stage import stage


class SwapParameters(BaseModel):
    """Which documents say a wrong answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.1, gt=0, le=0.5, description="of all documents: how many say another one's answer")
    answer: str = Field("answer", min_length=1, description="field of a document that holds its answer")
    within: str | None = Field(None, description="field on which two documents must agree to swap; none: any two may")
    seed: int = Field(0, ge=0, lt=2**32, description="of the choice")


@dataclass(frozen=True)
class _Labelled:
    """A document, what else its file says of it, and its answer; None where its text does not hold it."""

    document: Document
    fields: dict
    answer: str | None
    group: str


@stage("swapped answers")
def swap_answers(inputs: tuple[str, ...], path: Path, parameters: SwapParameters) -> int:
    """Write the documents of the inputs to `path`, some with wrong answers; returns how many are wrong.

    A file that is there is written again: the same inputs and parameters give the same file.
    """
    documents = [_labelled(document, parameters) for document in _documents(inputs)]
    wrong = _choose(documents, parameters)
    write_documents(path, [_record(item, wrong.get(k)) for k, item in enumerate(documents)])
    return len(wrong)


def _documents(inputs: Sequence[str]) -> Iterator[Document]:
    for file in find_inputs(inputs):
        for batch in read_documents(file):
            for found in batch:
                if not isinstance(found, Document):
                    raise InputError(
                        found.where,
                        expected="a document with a text in UTF-8",
                        found=found.reason,
                        remedy="Correct or remove it.",
                    )
                yield found


def _labelled(document: Document, parameters: SwapParameters) -> _Labelled:
    fields = json.loads(document.metadata)
    answer = fields.get(parameters.answer)
    there = isinstance(answer, str) and answer.strip() and standing(answer).search(document.text)
    group = "" if parameters.within is None else str(fields.get(parameters.within))
    return _Labelled(document, fields, answer if there else None, group)


def _choose(documents: Sequence[_Labelled], parameters: SwapParameters) -> dict[int, str]:
    """By index of a document, the answer that it is given."""
    answers: dict[str, set[str]] = {}
    for item in documents:
        if item.answer is not None:
            answers.setdefault(item.group, set()).add(item.answer)
    able = [k for k, item in enumerate(documents) if item.answer is not None and len(answers[item.group]) > 1]
    wanted = max(1, math.floor(parameters.share * len(documents)))
    if len(able) < wanted:
        where = "" if parameters.within is None else f" among those that agree in {parameters.within!r}"
        raise InputError(
            f"corpus of {len(documents):,} documents",
            expected=f"{wanted:,} or more whose text holds what their field {parameters.answer!r} says, and that have "
            f"another answer to swap with{where}",
            found=f"{len(able):,}",
            remedy="Name the right field with --answer, lower --share, or give more documents.",
        )
    random = np.random.default_rng(parameters.seed)
    chosen = sorted(random.choice(able, wanted, replace=False).tolist())
    given = {}
    for k in chosen:
        item = documents[k]
        others = sorted(answers[item.group] - {item.answer or ""})
        given[k] = others[random.integers(len(others))]
    return given


def _record(item: _Labelled, given: str | None) -> dict:
    document, text = item.document, item.document.text
    if given is not None and item.answer is not None:
        text = standing(item.answer).sub(lambda _: given, text)
    named = {"document_id": document.document_id, "text": text, "source": document.source}
    return {**item.fields, **named, "swapped": given is not None, "said": given or item.answer}
