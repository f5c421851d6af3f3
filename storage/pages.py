"""Pages: a template and values in, text for people out; whole under their name, or not there.

What comes from a corpus is hostile until shown otherwise. Four doors let it into a page, and each template
opens only its own: HTML (autoescape), JSON inside a script element (`embedded`, or gzipped: `packed`), Markdown.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import os
import re
import string
import uuid
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from storage.errors import InputError
from storage.text import size

# C0, C1, soft hyphen, bidi marks, overrides and isolates, zero-width and separator characters, tags.
# The joiners U+200C and U+200D stay: Persian, Indic scripts and emoji are spelt with them.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
# Everything that Markdown, HTML or an autolink could read as more than a character.
# Prefect's renderer shows an entity as it is written, so marks are escaped by backslashes; the four that could
# open HTML, a code span or a table cell are replaced by their likes, which no renderer can take for them.
_ESCAPES = {ord(mark): f"\\{mark}" for mark in set(string.punctuation) - set(",;-'?!")}
_ESCAPES |= str.maketrans("<>|`", "‹›¦ˋ")


def visible(text: str) -> str:
    """Text whose control characters can be seen and do nothing: ↵ for a line end, ␛ for escape, ⟨U+202E⟩."""
    return _UNSEEN.sub(lambda match: _picture_of(match.group()), text)


def unseen(text: str) -> bool:
    """Whether text holds a character that does something and shows nothing."""
    return _UNSEEN.search(text) is not None


def _picture_of(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "↵\n"
    if code < 0x20:
        return chr(0x2400 + code)
    return f"⟨U+{code:04X}⟩"


def presentable(value: Any) -> Any:
    """The value for a page: text made visible, numbers to 4 significant digits, none for NaN and infinity."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {visible(str(key)): presentable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [presentable(item) for item in value]
    return value.isoformat(" ", "minutes") if isinstance(value, datetime) else value


def embedded(value: Any) -> Markup:
    """JSON for a script element: no character of it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def packed(value: Any) -> Markup:
    """JSON, gzipped, in base64: for data that a page unpacks when it is looked at, at a third of its size."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode())


def markdown(value: Any) -> str:
    """A value for Markdown: text on one line, without control characters, its punctuation escaped."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return " ".join(_UNSEEN.sub(" ", value).split()).translate(_ESCAPES)
    return number(value)


def number(value: Any) -> str:
    """A number as people read it: 11,008, −0.0766, 15,660 for 15662.5, – for none; anything else as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{float(f'{value:.4g}'):,.0f}".replace("-", "−")  # as the page's script writes it
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}").replace("-", "−")


def source(name: str) -> Markup:
    """A style sheet or script of the package, as it stands."""
    loader, environment = _environment().loader, _environment()
    assert loader is not None
    return Markup(loader.get_source(environment, name)[0])


def digest(text: str) -> str:
    """The name under which a content security policy allows an inline style sheet or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render(template: str, values: dict[str, Any]) -> str:
    """Text of tasks/templates/<template>; every value is escaped for the kind that its name ends in."""
    environment = _environment()
    if template.endswith(".md.j2"):
        environment = environment.overlay(autoescape=False, finalize=markdown)
    return environment.get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tasks", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"embedded": embedded, "number": number, "size": size, "digest": digest}
    return environment


def write_page(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path`, making its directory; an older file is replaced in one step."""
    # The page names the digests of its own scripts, so line ends stay as they are on every system.
    return write_whole(Path(path).expanduser().absolute(), text.encode(), "page")


def write_whole(final: Path, content: bytes, kind: str) -> Path:
    """Write a file for people, a page or whatever `kind` says, in one step, making its directory."""
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, final)
    except OSError as error:
        raise InputError(
            f"{kind} {final}",
            expected="a path that can be written",
            found=error.strerror or str(error),
            remedy="Name another place, or make room.",
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return final
