"""A device's state as bytes: what is written is read, and nothing else is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vuproc.workers.state_bytes import (
    ALL_MAX,
    FORMAT,
    HEAD,
    HEADER_MAX,
    MAGIC,
    STATE_MAX,
    Kind,
    StateError,
    pack,
    unpack,
)

KIND = Kind(42, "Notes", 3)
HEADER = {"format": FORMAT, "device_id": 42, "device": "Notes", "version": 3, "size": 5}
DATA = b"hello"


def packed(encoded: bytes, data: bytes = DATA) -> bytes:
    return HEAD.pack(MAGIC, len(encoded)) + encoded + data


def header(**changes: object) -> bytes:
    return msgspec.msgpack.encode({**HEADER, **changes})


def test_the_layout_stays_as_it_is() -> None:
    """Another version of vuproc is to read it."""
    assert pack(KIND, DATA) == packed(header())
    assert pack(KIND, b"")[:12] == b"VUPSTATE" + (len(pack(KIND, b"")) - 12).to_bytes(4, "little")


@given(st.binary(), st.integers(1, 1 << 32), st.text(max_size=40))
def test_what_is_written_is_read(data: bytes, version: int, name: str) -> None:
    kind = Kind(7, name, version)
    assert unpack(kind, pack(kind, data)) == (data, version)


def test_an_older_version_and_a_key_of_later_ones() -> None:
    assert unpack(KIND, packed(header(version=1, more="text"))) == (DATA, 1)


@pytest.mark.parametrize("length", [0, 5, 11, 12, 30])
def test_a_state_that_is_cut_off(length: int) -> None:
    with pytest.raises(StateError):
        unpack(KIND, pack(KIND, DATA)[:length])


@pytest.mark.parametrize(
    ("moved", "reason"),
    [
        (pack(KIND, DATA)[:-1], "4 bytes follow the header, which says 5"),
        (pack(KIND, DATA) + b"!", "6 bytes follow the header, which says 5"),
        (b"VUPSTATF" + pack(KIND, DATA)[8:], "does not begin as the state of a device does"),
        (HEAD.pack(MAGIC, 0xFFFFFFFF) + DATA, "a header of 4294967295 bytes"),
        (packed(bytes(HEADER_MAX + 1)), f"of at most {HEADER_MAX}"),
        (packed(b""), "its header is damaged"),
        (packed(b"\xc1"), "its header is damaged"),
        (packed(b"\x81\xa1\xff\x00"), "its header is damaged"),
        (packed(b"\x91" * 1000), "its header is damaged"),
        (packed(msgspec.msgpack.encode({"format": FORMAT})), "its header is damaged"),
        (packed(header(size="5")), "its header is damaged"),
        (packed(header(format=FORMAT + 1)), f"of format {FORMAT + 1}, this vuproc reads {FORMAT}"),
        (packed(header(device_id=43)), "one of Notes (device_id 43), not of Notes (device_id 42)"),
        (packed(header(device="x\nERROR")), r"one of x\nERROR (device_id 42)"),
        (packed(header(version=4)), "of version 4, this device reads 1 to 3"),
        (packed(header(version=0)), "of version 0"),
        (packed(header(version=-1)), "of version -1"),
        (packed(header(size=-5)), "which says -5"),
    ],
)
def test_what_is_no_state_of_this_device(moved: bytes, reason: str) -> None:
    with pytest.raises(StateError) as caught:
        unpack(KIND, moved)
    assert reason in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic(noise: bytes) -> None:
    with pytest.raises(StateError):
        unpack(KIND, MAGIC + noise)


def test_a_state_has_a_bound() -> None:
    with pytest.raises(StateError, match=f"{STATE_MAX + 1} bytes"):
        pack(KIND, bytes(STATE_MAX + 1))
    assert len(pack(KIND, bytes(STATE_MAX))) < ALL_MAX
