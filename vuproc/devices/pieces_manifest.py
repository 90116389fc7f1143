"""An image in pieces, as it lies in an object store: nothing in there is changed in part.

    NAME/manifest.json         which run has written each piece last (`Manifest`)
    NAME/RUN/NUMBER            a piece: RUN and NUMBER are 16 hexadecimal digits

A run is one attempt of somebody to write changes back. Its number is random and its pieces are its
own, so that no object but the manifest is ever written twice. The image is what the manifest says,
which is exchanged as a whole, if it is still the one that it was made from: whoever reads has all
of a run, or nothing of it.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from vuproc.devices.object_store import ObjectUnavailable
from vuproc.spec.blk import SECTOR_SIZE

NAME = "manifest.json"
FORMAT: Literal["vuproc image 1"] = "vuproc image 1"
MOST_BYTES = 256 << 20
"""Bytes of the longest manifest that is read."""
MOST_SIZE = 1 << 50
LEAST_PIECE, MOST_PIECE = 64 << 10, 64 << 20
MOST_PIECES = 1 << 22
"""Of 1 MiB each they are 4 TiB; an image with more has larger ones."""
PIECE = 1 << 20
"""Bytes of a piece unless the image's maker wants others."""
ZEROS, BASE = 0, 1
"""Instead of a run: there is no object, and the piece is all zeros, or that of the base."""
MOST_ABANDONED = 32

_RUN = re.compile("[0-9a-f]{16}")
_PIECE_NAME = re.compile("[0-9a-f]{16}/[0-9a-f]{16}")


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A raw image in the same bucket: bytes, entity tag ("" if there is no strong one)."""

    key: str
    size: int
    tag: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`size`: bytes of the disk, `piece`: of each piece but the last. `run` has written this.

    `pieces` has for each piece the place of its run in `runs`, or -1 for one of zeros, or -2 for
    one that is the base's. `obsolete` are pieces that this run has replaced, and `abandoned` runs
    that came to nothing: whoever writes next deletes their objects first.
    """

    format: Literal["vuproc image 1"] = FORMAT
    size: int
    piece: int
    run: str
    base: Base | None = None
    runs: list[str]
    pieces: list[int]
    obsolete: list[str] = []
    abandoned: list[str] = []

    def by_piece(self) -> array[int]:
        """The run of each piece as a number, or ZEROS or BASE."""
        numbers = [int(run, 16) for run in self.runs] + [BASE, ZEROS]
        return array("Q", map(numbers.__getitem__, self.pieces))

    @property
    def number(self) -> int:
        """The run as a number."""
        return int(self.run, 16)


def is_folder(url: str) -> bool:
    """Whether a URL is that of an image in pieces: it ends in a slash."""
    return url.endswith("/")


def new_run() -> int:
    """A number that nobody else has: of 64 random bits, less those that mean something."""
    while (number := int.from_bytes(os.urandom(8), "little")) in (ZEROS, BASE):
        pass  # pragma: no cover - once in the life of a universe
    return number


def count_of(size: int, piece: int) -> int:
    """Pieces of a disk of `size` bytes."""
    return -(-size // piece)


def hexadecimal(number: int) -> str:
    """A run or the number of a piece as a part of a name."""
    return f"{number:016x}"


def piece_name(run: int, number: int) -> str:
    """Of a piece, in the folder of the image."""
    return f"{hexadecimal(run)}/{hexadecimal(number)}"


def encoded(
    *,
    size: int,
    piece: int,
    run: int,
    base: Base | None,
    by_piece: Iterable[int],
    obsolete: Sequence[str] = (),
    abandoned: Iterable[int] = (),
) -> bytes:
    """The manifest as its object has it."""
    places = {BASE: -2, ZEROS: -1}
    runs: list[str] = []
    pieces = []
    for number in by_piece:
        place = places.get(number)
        if place is None:
            place = places[number] = len(runs)
            runs.append(hexadecimal(number))
        pieces.append(place)
    manifest = Manifest(
        size=size,
        piece=piece,
        run=hexadecimal(run),
        base=base,
        runs=runs,
        pieces=pieces,
        obsolete=list(obsolete),
        abandoned=[hexadecimal(each) for each in abandoned],
    )
    return msgspec.json.encode(manifest)


def decoded(data: bytes) -> Manifest:
    """The manifest in an object. Raises ObjectUnavailable if it is none: it has come from outside,
    and what it says becomes names of objects, and places on a disk.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise ObjectUnavailable(f"{NAME} is no manifest of an image in pieces: {error}") from error
    problem = _problem(manifest)
    if problem is not None:
        raise ObjectUnavailable(f"{NAME} is no manifest of an image in pieces: {problem}")
    return manifest


def _problem(manifest: Manifest) -> str | None:
    size, piece = manifest.size, manifest.piece
    if not 0 < size <= MOST_SIZE or size % SECTOR_SIZE:
        return f"a size of {size} bytes"
    if not is_piece_size(piece):
        return f"pieces of {piece} bytes"
    if len(manifest.pieces) != count_of(size, piece) or len(manifest.pieces) > MOST_PIECES:
        return f"{len(manifest.pieces)} pieces"
    runs = [manifest.run, *manifest.runs, *manifest.abandoned]
    if not all(_RUN.fullmatch(run) and int(run, 16) not in (ZEROS, BASE) for run in runs):
        return "a run that is none"
    if not all(map(_PIECE_NAME.fullmatch, manifest.obsolete)):
        return "an obsolete piece that is none"
    if len(manifest.obsolete) > len(manifest.pieces) or len(manifest.abandoned) > MOST_ABANDONED:
        return "more that is to be deleted than there can be"
    if manifest.pieces and not -2 <= min(manifest.pieces) <= max(manifest.pieces) < len(
        manifest.runs
    ):
        return "a piece of a run that is not there"
    base = manifest.base
    if base is None:
        return "pieces of a base that is not there" if -2 in manifest.pieces else None
    if not base.key or base.size < size:
        return f"a base of {base.size} bytes"
    return None


def is_piece_size(piece: int) -> bool:
    """Whether pieces may be that large: a power of two."""
    return LEAST_PIECE <= piece <= MOST_PIECE and piece & (piece - 1) == 0


def is_zeros(data: bytes | bytearray) -> bool:
    """Whether there is no object for a piece with this content."""
    return data.count(0) == len(data)
