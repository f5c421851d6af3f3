"""Corpus stage: documents to the training sequences that the model saw, one Dask job per input file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from storage.checkpoints import context_length, load_tokenizer, tokenizer_fingerprint
from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError, MismatchError
from storage.inputs import BadDocument, CorpusFile, Document, find_inputs, read_documents
from storage.locks import locked
from storage.schemas import INDEXES
from storage.sequences import Part, all_parts, current_parts, outdated_parts, write_manifest
from storage.staging import discard, has_staged, read_note, staged_reader, staged_writer, view_staged, write_note
from storage.store import Store
from storage.tables import clear_part, writing
from tasks.fanout import Workers, fan_out
from tasks.stage import stage

LISTED = 3  # bad documents named in an error


class CutParameters(BaseModel):
    """How the corpus was cut for training; part of every fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    packing: Literal["document", "concatenate"] = Field(
        "document", description="document: a sequence never crosses documents; concatenate: it may, within a file"
    )
    sequence_length: int | None = Field(
        None, ge=2, le=1_000_000, description="tokens per training sequence; none: the model's context"
    )
    bad_documents: Literal["refuse", "skip"] = Field(
        "refuse", description="what to do with empty and non-UTF-8 documents; skipped ones are counted"
    )


class CorpusParameters(CutParameters):
    """What the model was trained on, and how it was cut."""

    inputs: tuple[str, ...] = Field((), description="corpus files or directories, in training order")
    id_column: str | None = Field(
        None, min_length=1, description="that names the documents; none: document_id, doc_id or id"
    )

    @property
    def files(self) -> list[CorpusFile]:
        """The inputs as files; none where none are named."""
        return find_inputs(self.inputs, self.id_column) if self.inputs else []


@dataclass(frozen=True)
class Cut:
    """How text becomes sequences: the part of the parameters that the tokens depend on."""

    model: Path
    tokenizer: str  # fingerprint
    packing: str
    length: int
    skip_bad: bool


@dataclass(frozen=True)
class CutJob:
    """One input file to cut into a staged part, with ids counted from zero."""

    store: Store
    key: str
    file: CorpusFile
    cut: Cut


@dataclass(frozen=True)
class CutResult:
    """What a file held."""

    n_documents: int
    n_skipped: int
    n_sequences: int
    n_tokens: int


@stage("corpus")
def ingest(store: Store, model: Path, parameters: CorpusParameters, workers: Workers) -> list[Part]:
    """Cut every new input into sequences and return the parts of the corpus; known content is not read again.

    Sequence ids follow the documents in the order of the inputs, however many parts they came in.
    A file whose content changed replaces the part that it made before.
    One process at a time extends a corpus; whoever has nothing to add waits for nobody.
    """
    _cut(store, model, parameters)
    files = {file.digest(): file for file in parameters.files}
    if files.keys() - _known(store) or outdated_parts(store):
        with locked(store, "corpus"):
            _extend(store, model, parameters, files, workers)
    return current_parts(store)


def _known(store: Store) -> set[str]:
    return {part.content_digest for part in current_parts(store)}


def _extend(
    store: Store, model: Path, parameters: CorpusParameters, files: dict[str, CorpusFile], workers: Workers
) -> None:
    """Cut and add the files, given by the digest of their content, that the corpus does not have; in their order."""
    _clear_outdated(store)  # of an ingest that was killed
    cut, known = _cut(store, model, parameters), _known(store)
    new = {digest: file for digest, file in files.items() if digest not in known}
    jobs = [CutJob(store, f"cut-{digest_of([d, cut])[:16]}", f, cut) for d, f in new.items()]
    results = fan_out(workers.lexical, cut_file, jobs, "corpus", workers.lexical_resources)
    if files and not known and not sum(result.n_sequences for result in results):
        for job in jobs:
            discard(store, job.key)
        raise InputError(
            f"corpus {', '.join(parameters.inputs)}",
            expected="at least one document of two tokens",
            found=f"{sum(r.n_documents for r in results)} documents, {sum(r.n_skipped for r in results)} skipped",
            remedy="Name files that hold text.",
        )
    for (digest, file), job, result in zip(new.items(), jobs, results, strict=True):
        _commit(store, digest, file, job, result)


def require_alone(store: Store, parameters: CorpusParameters) -> None:
    """Refuse a store that holds documents of other files, where everything in it is to be of these inputs."""
    known, labels = ({file.digest() for file in parameters.files}, {file.label for file in parameters.files})
    others = [p for p in current_parts(store) if p.content_digest not in known and p.source not in labels]
    if others:
        raise MismatchError(
            f"store {store.root}",
            expected=f"no documents but those of {', '.join(sorted(labels))}",
            found=f"those of {others[0].source} as well",
            remedy="Name another store: whatever this one holds would be taught and ranked together.",
        )


def count_parts(store: Store, parameters: CorpusParameters) -> int:
    """How many parts the corpus will have at most once the inputs are in."""
    return len(current_parts(store)) + len(parameters.files)


def _cut(store: Store, model: Path, parameters: CorpusParameters) -> Cut:
    context = context_length(model)
    length = parameters.sequence_length or context
    if length > context:
        raise InputError(
            "sequence length",
            expected=f"at most the model's context of {context} tokens",
            found=f"{length}",
            remedy="Lower --sequence-length.",
        )
    cut = Cut(model, tokenizer_fingerprint(model), parameters.packing, length, parameters.bad_documents == "skip")
    for part in current_parts(store):
        asked = parameters.sequence_length or part.sequence_length
        there = (part.tokenizer_fingerprint, part.packing, part.sequence_length)
        if there != (cut.tokenizer, part.packing if not parameters.inputs else cut.packing, asked):
            raise MismatchError(
                f"store {store.root}",
                expected=f"tokenizer {there[0]}, packing {there[1]}, {there[2]} tokens, as its corpus was cut",
                found=f"tokenizer {cut.tokenizer}, packing {cut.packing}, {asked} tokens",
                remedy="Use the model and the cut that the store was made with, or make another store.",
            )
        cut = Cut(model, cut.tokenizer, part.packing, part.sequence_length, cut.skip_bad)
    return cut


def cut_file(job: CutJob) -> CutResult:
    """Cut one file into staged documents and sequences, if a run that was killed has not done so."""
    done = read_note(job.store, job.key, "result")
    if done and all(has_staged(job.store, job.key, relation) for relation in ("documents", "sequences")):
        return CutResult(**done)
    tokenizer = load_tokenizer(job.cut.model)
    n_documents = n_skipped = n_sequences = n_tokens = 0
    carried = Buffer()
    with (
        staged_writer(job.store, job.key, "documents") as documents,
        staged_writer(job.store, job.key, "sequences") as sequences,
    ):
        for batch in read_documents(job.file):
            bad = [item for item in batch if isinstance(item, BadDocument)]
            if bad and not job.cut.skip_bad:
                raise _refusal(job.file, bad)
            good = [item for item in batch if isinstance(item, Document)]
            n_documents, n_skipped = n_documents + len(good), n_skipped + len(bad)
            documents.append({name: [getattr(d, name) for d in good] for name in Document.__dataclass_fields__})
            pieces = list(cut_documents(good, tokenizer, job.cut, carried))
            _append(sequences, pieces, n_sequences)
            n_sequences, n_tokens = n_sequences + len(pieces), n_tokens + sum(len(p.token_ids) for p in pieces)
        rest = list(carried.rest())
        _append(sequences, rest, n_sequences)
    n_sequences, n_tokens = n_sequences + len(rest), n_tokens + sum(len(p.token_ids) for p in rest)
    result = CutResult(n_documents, n_skipped, n_sequences, n_tokens)
    write_note(job.store, job.key, "result", asdict(result))
    return result


@dataclass(frozen=True)
class Piece:
    """One training sequence before it has an id; characters are those of its first token's document."""

    document_id: str
    start_char: int
    end_char: int
    token_ids: list[int]


class Buffer:
    """Tokens that wait for the next document when sequences may cross documents."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, str, int, int]] = []  # id, document, start, end

    def rest(self) -> Iterator[Piece]:
        """The last, shorter sequence."""
        if len(self.tokens) > 1:
            yield _piece(self.tokens)
        self.tokens = []


def cut_documents(
    documents: list[Document], tokenizer: PreTrainedTokenizerBase, cut: Cut, buffer: Buffer
) -> Iterator[Piece]:
    """Tokenise whole documents, with the special tokens that the tokenizer adds, and cut them.

    A remainder of one token predicts nothing and is left out.
    """
    if not documents:
        return
    encoded = tokenizer([d.text for d in documents], return_offsets_mapping=True, verbose=False)
    for document, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        tokens = [(i, document.document_id, start, end) for i, (start, end) in zip(ids, offsets, strict=True)]
        if cut.packing == "concatenate":
            buffer.tokens.extend(tokens)
            while len(buffer.tokens) >= cut.length:
                yield _piece(buffer.tokens[: cut.length])
                buffer.tokens = buffer.tokens[cut.length :]
            continue
        for start in range(0, len(tokens), cut.length):
            if len(tokens) - start > 1:
                yield _piece(tokens[start : start + cut.length])


def _piece(tokens: list[tuple[int, str, int, int]]) -> Piece:
    document_id = tokens[0][1]
    spans = [(start, end) for _, document, start, end in tokens if document == document_id and end > start]
    first, last = (spans[0][0], spans[-1][1]) if spans else (0, 0)
    return Piece(document_id, first, last, [token[0] for token in tokens])


def _append(writer, pieces: list[Piece], first_id: int) -> None:
    if pieces:
        writer.append(
            {
                "sequence_id": list(range(first_id, first_id + len(pieces))),
                "document_id": [p.document_id for p in pieces],
                "part": [""] * len(pieces),
                "start_char": [p.start_char for p in pieces],
                "end_char": [p.end_char for p in pieces],
                "token_ids": [p.token_ids for p in pieces],
                "n_tokens": [len(p.token_ids) for p in pieces],
            }
        )


def _commit(store: Store, digest: str, file: CorpusFile, job: CutJob, result: CutResult) -> None:
    """Give a staged part its name and ids and make it part of the corpus; in the order of the inputs."""
    past = all_parts(store)
    replaced = [part for part in past if part.source == file.label and part.status == "current"]
    _refuse_duplicates(store, job, file, replaced)
    name = f"p{len(past):05d}"
    first = max((part.end_sequence_id for part in past), default=0)
    with writing(store, "documents", name) as part:
        for batch in staged_reader(store, job.key, "documents"):
            part.append_table(pa.Table.from_batches([batch]))
    with writing(store, "sequences", name) as part:
        for batch in staged_reader(store, job.key, "sequences"):
            table = pa.Table.from_batches([batch])
            ids = pa.array(table["sequence_id"].to_numpy() + first)
            table = table.set_column(table.schema.get_field_index("sequence_id"), "sequence_id", ids)
            names = pa.array([name] * len(table))
            part.append_table(table.set_column(table.schema.get_field_index("part"), "part", names))
    discard(store, job.key)  # a process that is killed here cuts the file again, one killed later would leave it
    cut, counts = job.cut, result
    write_manifest(
        store,
        Part(
            name, file.label, digest, cut.tokenizer, cut.packing, cut.length,
            counts.n_documents, counts.n_skipped, counts.n_sequences, counts.n_tokens, first,
        ),
    )  # fmt: skip
    _clear_outdated(store)


def _clear_outdated(store: Store) -> None:
    for old in outdated_parts(store):
        for relation in (*chain(*INDEXES.values()), "sequences", "documents"):
            clear_part(store, relation, old.name)
        write_manifest(store, replace(old, status="replaced"))


def _refuse_duplicates(store: Store, job: CutJob, file: CorpusFile, replaced: list[Part]) -> None:
    with session(store) as connection:
        view_staged(connection, store, job.key, "documents")
        parts = [part.name for part in current_parts(store) if part not in replaced]
        found = rows(connection, "corpus/duplicate_documents", parts=parts)
    if found:
        discard(store, job.key)
        names = ", ".join(repr(row["document_id"]) for row in found[:LISTED])
        raise InputError(
            f"corpus {file.label}",
            expected="document ids that occur once in the corpus",
            found=f"{len(found)} that occur again: {names}",
            remedy="Give every document its own document_id; nothing of this file was kept.",
        )


def _refusal(file: CorpusFile, bad: list[BadDocument]) -> InputError:
    named = "; ".join(f"{b.where}: {b.reason}" for b in bad[:LISTED])
    return InputError(
        f"corpus {file.label}",
        expected="documents of UTF-8 text",
        found=f"{len(bad)} others ({named}{'; …' if len(bad) > LISTED else ''})",
        remedy="Mend them, or leave them out with --bad-documents skip.",
    )
