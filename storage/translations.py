"""Queries in several languages: parallel sentences of a Parquet file, or a file that says each query's language."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import InputError
from storage.prompts import Prompt, make_prompt, read_prompts

JOINER = "\u200d"  # binds two characters into one
LONGEST = 400  # bytes of a sentence in any of its languages: as many tokens at most, for whatever tokenizer
REMEDY = "Name the columns after the file (FILE.parquet:en:de), or give each query its group and language."


@dataclass(frozen=True)
class Translated:
    """One query and its translations: the same words in each language that has them."""

    name: str
    prompts: dict[str, Prompt]  # by language


def read_translated(asked: str, most: int, longest: int = LONGEST) -> list[Translated]:
    """Queries by language, those of the first language first.

    FILE.parquet:en:de:fr takes the columns of a table of parallel sentences, each cut in two; any other file holds
    queries whose `group` says which are translations of one another, and whose `language` names their language.

    Args:
        most: sentences taken of a table, the first ones that are there in every language and not too long
        longest: bytes of one, in whichever language; at worst a tokenizer makes a token of each
    """
    path, mark, columns = asked.partition(".parquet:")
    if mark or asked.endswith(".parquet"):
        return _sentences(
            Path(path + ".parquet" if mark else asked).expanduser(),
            list(filter(None, columns.split(":"))),
            most,
            min(longest, LONGEST),
        )
    return _grouped(asked)


def cut_in_two(text: str) -> tuple[str, str]:
    """A sentence as a prompt and its completion, which takes up the white space between them.

    The cut is at the white space nearest to the middle, if there is any in the middle half; else, as in languages
    written without spaces, at the middle character, never before a mark that belongs to the one before it.
    """
    text = text.strip()
    middle = len(text) / 2
    places = [k for k, c in enumerate(text) if c.isspace() and middle / 2 <= k <= 1.5 * middle]
    place = min(places, key=lambda k: abs(k - middle)) if places else (len(text) + 1) // 2
    while place < len(text) and (unicodedata.category(text[place])[0] == "M" or JOINER in text[place - 1 : place + 1]):
        place += 1
    return text[:place], text[place:]


def _sentences(file: Path, languages: list[str], most: int, longest: int) -> list[Translated]:
    rows = _columns(file, languages)
    sound = [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if all(text and len(text.strip()) > 1 and len(text.encode()) <= longest for text in row)
    ]
    if not sound:
        raise _refused(
            str(file),
            f"rows with a sentence of at most {longest} bytes in each language",
            f"none in {len(rows):,} rows",
        )
    distinct = list({row[0].strip(): (number, row) for number, row in reversed(sound)}.values())[::-1]
    return [
        Translated(
            f"sentence {number}",
            {language: _cut(text, language, number) for language, text in zip(languages, row, strict=True)},
        )
        for number, row in distinct[:most]
    ]


def _columns(file: Path, languages: list[str]) -> list[tuple[str, ...]]:
    try:
        there = pq.read_schema(file).names
        missing = [name for name in languages if name not in there]
        if missing or len(set(languages)) < 2:
            given = (
                f"no column {', '.join(map(repr, missing))} among"
                if missing
                else f"{''.join(languages[:1]) or 'none'} of"
            )
            raise _refused(str(file), "two languages or more, each a column of it", f"{given} {', '.join(there)}")
        table = pq.read_table(file, columns=languages)
        return list(zip(*(table.column(name).cast(pa.string()).to_pylist() for name in languages), strict=True))
    except (OSError, pa.ArrowException) as error:
        raise _refused(str(file), "a Parquet file with a column of text for each language", str(error)) from error


def _cut(text: str, language: str, number: int) -> Prompt:
    prompt, completion = cut_in_two(text)
    identity = f"{make_prompt(prompt, completion).query_id}-{language}"
    said = {"group": f"sentence {number}", "language": language}
    return make_prompt(prompt, completion, identity, json.dumps(said, sort_keys=True))


def _grouped(path: str) -> list[Translated]:
    groups: dict[str, dict[str, Prompt]] = {}
    languages: list[str] = []
    for prompt in read_prompts(path):
        said = json.loads(prompt.metadata)
        if said.get("group") is None or said.get("language") is None:
            lacking = "group" if said.get("group") is None else "language"
            raise _refused(f"{path}, query {prompt.query_id}", "its group and its language", f"no {lacking}")
        name, language = str(said["group"]), str(said["language"])
        if language in groups.setdefault(name, {}):
            raise _refused(f"{path}, group {name}", "one query in each language", f"two in {language}")
        groups[name][language] = prompt
        languages = languages if language in languages else [*languages, language]
    without = [name for name, of in groups.items() if languages[0] not in of]
    if len(languages) < 2 or without:
        raise _refused(
            path,
            f"queries in two languages or more, each group with one in the first of them, {languages[0]}",
            f"{languages[0]} alone" if len(languages) < 2 else f"none in group {', '.join(without[:5])}",
        )
    return [Translated(name, {of: by[of] for of in languages if of in by}) for name, by in groups.items()]


def _refused(subject: str, expected: str, found: str) -> InputError:
    return InputError(f"sentences {subject}", expected=expected, found=found.splitlines()[0], remedy=REMEDY)
