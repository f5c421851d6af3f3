"""Queries: read from JSON lines, registered in the store's `queries` by id, never changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow.compute as pc

from storage.clock import TICK, store_time
from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError, MismatchError, StoreError
from storage.store import Store, explain_write
from storage.tables import create_part, has_part, part_names, read_part

ALONE = "q-"  # begins the names of files that hold one query
PROMPT = ["query_id", "prompt", "completion", "metadata"]


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
    """Queries from JSON lines with prompt, completion and, if wanted, query_id; other fields are metadata."""
    path, prompts = Path(path).expanduser(), []
    if not path.is_file():
        raise InputError(f"queries {path}", expected="a file", found="none", remedy="Check the path of --queries.")
    with explain_write(path):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompts.append(_parse(line, f"queries {path}, line {number}"))
    if not prompts:
        raise InputError(
            f"queries {path}", expected="one JSON object per line", found="no line", remedy="Write at least one query."
        )
    require_distinct(prompts, str(path))
    return prompts


def _parse(line: bytes, where: str) -> Prompt:
    try:
        record = json.loads(line.decode("utf-8"))
        rest = {k: v for k, v in record.items() if k not in {"query_id", "prompt", "completion"}}
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise InputError(
            where, expected='{"prompt": …, "completion": …} in UTF-8', found=str(error), remedy="Correct the line."
        ) from error
    if "completion" not in record or "prompt" not in record:
        missing = "prompt" if "prompt" not in record else "completion"
        raise InputError(
            where,
            expected="a prompt and a completion",
            found=f"no {missing}",
            remedy=f"Add the field {missing!r}; a prompt may be an empty string.",
        )
    query_id = None if record.get("query_id") is None else str(record["query_id"])
    return make_prompt(record["prompt"], record["completion"], query_id, json.dumps(rest, sort_keys=True))


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
