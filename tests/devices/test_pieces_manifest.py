"""What a manifest may say: it comes from outside."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import pytest

from vuproc.devices import pieces_manifest
from vuproc.devices.object_store import ObjectUnavailable
from vuproc.devices.pieces_manifest import BASE, ZEROS, Base, decoded, encoded, new_run, piece_name
from vuproc.devices.pieces_map import PiecesMap, new_map

PIECE = 64 << 10
SIZE = 3 * PIECE + 512
RUN, OTHER = 0xABC, 0xFFFF_FFFF_FFFF_FFFF


def a_manifest() -> dict[str, Any]:
    data = encoded(
        size=SIZE,
        piece=PIECE,
        run=RUN,
        base=Base("golden.raw", SIZE, '"tag"'),
        by_piece=[RUN, ZEROS, BASE, OTHER],
        obsolete=[piece_name(OTHER, 0)],
        abandoned=[7],
    )
    found: dict[str, Any] = msgspec.json.decode(data)
    return found


def test_what_is_written_is_read() -> None:
    manifest = decoded(msgspec.json.encode(a_manifest()))
    assert manifest.by_piece() == array("Q", [RUN, ZEROS, BASE, OTHER])
    assert (manifest.number, manifest.size, manifest.piece) == (RUN, SIZE, PIECE)
    with new_map(manifest) as memory:
        pieces, again = PiecesMap(memory), PiecesMap(memory)
        try:
            assert (pieces.run, pieces.by_piece()) == (RUN, manifest.by_piece())
            assert pieces.base == Base("golden.raw", SIZE, '"tag"')
            again.take(OTHER, array("Q", [OTHER, ZEROS, ZEROS, RUN]))
            assert (pieces.run, pieces.run_of(0), pieces.run_of(3)) == (OTHER, OTHER, RUN)
        finally:
            pieces.close()
            again.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "vuproc image 2"},
        {"size": 0},
        {"size": SIZE + 1},
        {"size": 2 * SIZE},
        {"size": 1 << 60},
        {"piece": PIECE + 1},
        {"piece": 512},
        {"piece": 0},
        {"run": "../../other/disk"},
        {"run": "0" * 16},
        {"runs": ["0000000000000abc", "../secret"]},
        {"runs": ["0000000000000abc", "F" * 16]},
        {"pieces": [0, -1, -2]},
        {"pieces": [0, -1, -2, 2]},
        {"pieces": [0, -1, -3, 1]},
        {"base": None},
        {"base": {"key": "golden.raw", "size": SIZE - 512, "tag": ""}},
        {"base": {"key": "", "size": SIZE, "tag": ""}},
        {"base": {"key": "golden.raw", "size": SIZE, "tag": "", "url": "http://elsewhere/x"}},
        {"obsolete": ["../manifest.json"]},
        {"obsolete": ["manifest.json"]},
        {"obsolete": [piece_name(1, 1)] * 5},
        {"abandoned": ["."]},
        {"abandoned": ["0000000000000abc"] * 33},
        {"more": 1},
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ObjectUnavailable, match=r"manifest\.json is no manifest"):
        decoded(msgspec.json.encode({**a_manifest(), **changes}))


def test_other_bytes_are_no_manifest() -> None:
    for data in (b"", b"QFI\xfb", b"[]", b"{" * 5000):
        with pytest.raises(ObjectUnavailable):
            decoded(data)


def test_a_run_is_none_that_means_something() -> None:
    assert not {new_run() for _ in range(100)} & {ZEROS, BASE}
    assert pieces_manifest.is_zeros(bytes(5)) and not pieces_manifest.is_zeros(b"\0\0x")
