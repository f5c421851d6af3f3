"""Seals: a file carries the SHA-256 of its own bytes, so that verification finds whatever changed in it.

The digest stands in the text that the format keeps anyway, Parquet's footer or the header of safetensors, and is taken
while its 64 places hold zeros. So it goes wherever the file goes, and no list of files has to be kept beside them.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

from storage.places import Place

KEY = "headwater_sha256"
BLANK = "0" * 64
CHUNK = 1 << 20
_LENGTH_BYTES = {".parquet": 4, ".safetensors": 8}
# After the key stand type and length of the value in Parquet's footer, a colon and quotes in the header of safetensors.
_SEAL = re.compile(KEY.encode() + rb'(?:\x18\x40|":")(.{64})', re.DOTALL)


def seal(path: Path, suffix: str) -> None:
    """Write into a complete local file the digest of its bytes; it must hold KEY with the value BLANK."""
    with open(path, "r+b") as file:
        place = _find(file, suffix)
        assert place is not None  # whoever writes the file puts the blank there
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest.encode())


def seal_is_whole(path: Place) -> bool | None:
    """Whether a file still has the bytes that it was sealed with; None for one without a seal."""
    with path.open("rb") as file:
        place = _find(file, path.suffix)
        if place is None:
            return None
        file.seek(place)
        return file.read(len(BLANK)) == _digest(file, place).encode()


def _find(file: BinaryIO, suffix: str) -> int | None:
    """Where the digest stands; the last match, because users' text may come before our own."""
    width = _LENGTH_BYTES[suffix]
    if suffix == ".parquet":  # … footer, its length, "PAR1"
        end = file.seek(0, 2) - 8
        file.seek(max(0, end))
        length = int.from_bytes(file.read(width), "little")
        start = max(0, end - length)
    else:  # the header's length, header, …
        file.seek(0)
        start, length = width, min(int.from_bytes(file.read(width), "little"), 1 << 27)
    file.seek(start)
    found = list(_SEAL.finditer(file.read(length)))
    return start + found[-1].start(1) if found else None


def _digest(file: BinaryIO, place: int) -> str:
    """SHA-256 of the file with zeros for its digest."""
    file.seek(0)
    digest, at = hashlib.sha256(), 0
    while chunk := file.read(CHUNK):
        first, last = max(place - at, 0), min(place + len(BLANK) - at, len(chunk))
        if first < last:
            chunk = chunk[:first] + b"0" * (last - first) + chunk[last:]
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()
