"""Queries: read from JSON lines or a JSON document, registered in the store's `queries` by id, never changed."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from storage.clock import TICK, store_time
from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError, MismatchError, StoreError
from storage.store import Store, explain_write
from storage.tables import create_part, has_part, part_names, read_part

ALONE = "q-"  # begins the names of files that hold one query
PROMPT = ["query_id", "prompt", "completion", "metadata"]
SHAPE = '{"prompt": …, "completion": …} in UTF-8'
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """What was asked and what the model said: one query."""

    query_id: str
    prompt: str
    completion: str
    metadata: str = "{}"


def make_prompt(prompt: str, completion: str, query_id: str | None = None, metadata: str = "{}") -> Prompt:
    """A query; without an id it gets one from its text."""
    identity = query_id or f"q-{digest_of([prompt, completion])[:8]}"
    if not isinstance(prompt, str) or not isinstance(completion, str) or not completion.strip():
        raise InputError(
            f"query {identity}",
            expected="a prompt and a completion that is not empty",
            found=f"prompt {str(prompt)[:40]!r}, completion {completion!r}",
            remedy="Give the text whose probability is to be explained as the completion.",
        )
    return Prompt(identity, prompt, completion, metadata)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Queries with prompt, completion and, if wanted, query_id; other fields are metadata.

    A file holds JSON lines, or one JSON document: a list of queries, or an object that has them under `queries`, as
    published collections do. There a query's `name` is its id; prompt and completion, which such collections give
    without what stood between them, are joined by a space where neither has white space at the joint; and a query that
    only points to its text is named and left out.
    """
    path, prompts = Path(path).expanduser(), []
    if not path.is_file():
        raise InputError(f"queries {path}", expected="a file", found="none", remedy="Check the path of --queries.")
    with explain_write(path):
        content = path.read_bytes()
    document = _document(content)
    if document is not None:
        return _collected(path, *document)
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            prompts.append(_parse(line, f"queries {path}, line {number}"))
    if not prompts:
        raise InputError(
            f"queries {path}", expected="one JSON object per line", found="no line", remedy="Write at least one query."
        )
    require_distinct(prompts, str(path))
    return prompts


def _document(content: bytes) -> tuple[list[dict], bool] | None:
    """The queries of a JSON document and whether they are a collection's; None of JSON lines."""
    try:
        found = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None  # lines, each of which is parsed by itself and named where it is wrong
    collection = isinstance(found, dict) and isinstance(found.get("queries"), list)
    records = found["queries"] if collection else found if isinstance(found, list) else [found]
    return (records, collection) if records and all(isinstance(record, dict) for record in records) else None


def _collected(path: Path, records: list[dict], collection: bool) -> list[Prompt]:
    """The queries of a document; those without words are left out."""
    sound, pointers, n_joined = [], [], 0
    for number, record in enumerate(records, start=1):
        name = record.get("name") if collection else None
        if None in (record.get("prompt", ""), record.get("completion", "")):
            pointers.append(str(record.get("query_id", name or f"number {number}")))
            continue
        joined = _with_space(record) if collection else record
        n_joined += joined != record
        sound.append(_query(joined, f"queries {path}, number {number}", name))
    if pointers:
        names = ", ".join(pointers)
        log.warning("queries %s: %s left out: without prompt or completion, they only point to a text", path, names)
    if n_joined:
        log.warning("queries %s: a space put between prompt and completion of %d of %d", path, n_joined, len(sound))
    if not sound:
        raise InputError(
            f"queries {path}",
            expected="a query with its words",
            found=f"{len(pointers)} that only point to a text",
            remedy="Fill in prompt and completion of one of them.",
        )
    require_distinct(sound, str(path))
    return sound


def _with_space(record: dict) -> dict:
    prompt, completion = record.get("prompt"), record.get("completion")
    if not (isinstance(prompt, str) and isinstance(completion, str) and prompt and completion):
        return record
    return record if prompt[-1].isspace() or completion[0].isspace() else {**record, "completion": f" {completion}"}


def _parse(line: bytes, where: str) -> Prompt:
    try:
        record = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(where, expected=SHAPE, found=str(error), remedy="Correct the line.") from error
    if not isinstance(record, dict):
        raise InputError(where, expected=SHAPE, found=type(record).__name__, remedy="Correct the line.")
    return _query(record, where)


def _query(record: dict[str, Any], where: str, name: Any = None) -> Prompt:
    if "completion" not in record or "prompt" not in record:
        missing = "prompt" if "prompt" not in record else "completion"
        raise InputError(
            where,
            expected="a prompt and a completion",
            found=f"no {missing}",
            remedy=f"Add the field {missing!r}; a prompt may be an empty string.",
        )
    given = name if record.get("query_id") is None else record["query_id"]
    rest = {k: v for k, v in record.items() if k not in {"query_id", "prompt", "completion"}}
    metadata = json.dumps(rest, sort_keys=True)
    return make_prompt(record["prompt"], record["completion"], None if given is None else str(given), metadata)


def require_distinct(prompts: list[Prompt], where: str) -> None:
    """Two queries of one id are an error, even when they are equal."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.query_id in seen:
            raise InputError(
                f"queries {where}",
                expected="every query_id once",
                found=f"{prompt.query_id!r} twice",
                remedy="Rename or remove one of them.",
            )
        seen.add(prompt.query_id)


def register_prompts(store: Store, prompts: list[Prompt]) -> list[Prompt]:
    """Add new queries to `queries` and return them; a known id with other words is refused.

    Safe from many processes at once: a query is one file, named by its id, which one of them creates.
    """
    require_distinct(prompts, "of this run")
    known = _known(store, prompts)
    for prompt in prompts:
        _require_same_words(prompt, known.get(prompt.query_id, prompt))
    unknown = [prompt for prompt in prompts if prompt.query_id not in known]
    if not unknown:
        return []
    now, new = store_time(store, len(unknown)), []
    for k, prompt in enumerate(unknown):
        # Apart, so that they stay in the order in which they were handed in.
        if _created(store, prompt, now + k * TICK):
            new.append(prompt)
        else:
            _require_same_words(prompt, _known(store, [prompt]).get(prompt.query_id, prompt))
    return new


def query_file(query_id: str) -> str:
    """The name of the file of one query; an id from outside never forms a path."""
    return f"{ALONE}{digest_of(query_id)[:32]}"


def _created(store: Store, prompt: Prompt, submitted_at: datetime) -> bool:
    columns = {
        "query_id": [prompt.query_id],
        "prompt": [prompt.prompt],
        "completion": [prompt.completion],
        "submitted_at": [submitted_at],
        "metadata": [prompt.metadata],
    }
    return create_part(store, "queries", query_file(prompt.query_id), columns=columns)


def _known(store: Store, prompts: list[Prompt]) -> dict[str, Prompt]:
    """The queries that the store has under the same ids: in files of their own, or merged with others."""
    asked = [prompt.query_id for prompt in prompts]
    own = {query_file(query_id) for query_id in asked}
    found: dict[str, Prompt] = {}
    for name in part_names(store, "queries"):
        if name.startswith(ALONE) and name not in own:
            continue
        try:
            table = read_part(store, "queries", name, columns=PROMPT, where=pc.field("query_id").isin(asked))
        except StoreError:
            if has_part(store, "queries", name):
                raise
            return _known(store, prompts)  # merged with others since it was listed
        for row in table.to_pylist():
            found.setdefault(row["query_id"], Prompt(**row))
    return found


def _require_same_words(prompt: Prompt, known: Prompt) -> None:
    if (known.prompt, known.completion) != (prompt.prompt, prompt.completion):
        raise MismatchError(
            f"query {prompt.query_id!r}",
            expected=f"{known.prompt!r} → {known.completion!r}, as the store has it",
            found=f"{prompt.prompt!r} → {prompt.completion!r}",
            remedy="Give the new query another query_id.",
        )


def stored_prompts(store: Store) -> list[Prompt]:
    """Every query of the store, in the order they came."""
    with session(store) as connection:
        return [Prompt(**row) for row in rows(connection, "results/queries_by_time")]
