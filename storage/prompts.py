"""Queries: read from JSON lines, registered in the store's `queries` by id, never changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.database import rows, session
from storage.digests import digest_of
from storage.errors import InputError, MismatchError
from storage.store import Store, explain_write
from storage.tables import write_part


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


def register_prompts(store: Store, prompts: list[Prompt]) -> None:
    """Add new queries to `queries`; a known id with other words is refused."""
    require_distinct(prompts, "of this run")
    with session(store) as connection:
        known = {
            row["query_id"]: row for row in rows(connection, "results/queries_by_id", ids=[p.query_id for p in prompts])
        }
    new = []
    for prompt in prompts:
        row = known.get(prompt.query_id)
        if row is None:
            new.append(prompt)
        elif (row["prompt"], row["completion"]) != (prompt.prompt, prompt.completion):
            raise MismatchError(
                f"query {prompt.query_id!r}",
                expected=f"{row['prompt']!r} → {row['completion']!r}, as the store has it",
                found=f"{prompt.prompt!r} → {prompt.completion!r}",
                remedy="Give the new query another query_id.",
            )
    if new:
        now = datetime.now(UTC).replace(tzinfo=None)
        name = f"{now:%Y%m%dT%H%M%S%f}-{digest_of([p.query_id for p in new])[:8]}"
        columns = {
            "query_id": [p.query_id for p in new],
            "prompt": [p.prompt for p in new],
            "completion": [p.completion for p in new],
            "submitted_at": [now] * len(new),
            "metadata": [p.metadata for p in new],
        }
        write_part(store, "queries", name, columns=columns)


def stored_prompts(store: Store) -> list[Prompt]:
    """Every query of the store, in the order they came."""
    with session(store) as connection:
        return [Prompt(**row) for row in rows(connection, "results/queries_by_time")]
