"""A layout gives back what was packed, and refuses what does not fit."""

from __future__ import annotations

import pytest

from vuproc.spec.layout import Layout, LayoutError
from vuproc.spec.payload import Payload

PAIR = Layout("pair", "<IH", "first", "second")
PADDED = Layout("padded", "=B7xQ", "small", "large")
ARRAY = Layout("array", "=I3Q", "count", "sizes")
TEXT = Layout("text", "=16s", "uuid")


def test_fields_come_back_by_name() -> None:
    assert PAIR.unpack(PAIR.pack(first=7, second=9)) == {"first": 7, "second": 9}


def test_missing_fields_are_zero() -> None:
    assert PAIR.pack(second=1) == b"\0\0\0\0\1\0"
    assert TEXT.pack() == bytes(16)


def test_padding_has_no_name_but_counts() -> None:
    assert PADDED.offsets == {"small": 0, "large": 8}
    assert PADDED.size == 16


def test_a_counted_token_is_a_tuple() -> None:
    packed = ARRAY.pack(count=2, sizes=(5, 6))
    assert ARRAY.unpack(packed) == {"count": 2, "sizes": (5, 6, 0)}
    assert ARRAY.offsets["sizes"] == 4


def test_too_many_values_are_refused() -> None:
    with pytest.raises(LayoutError, match="holds 3 values"):
        ARRAY.pack(sizes=(1, 2, 3, 4))


def test_unpack_at_an_offset() -> None:
    assert PAIR.unpack(b"xx" + PAIR.pack(first=3), 2)["first"] == 3


@pytest.mark.parametrize("offset", [-1, 1, 100])
def test_bytes_that_end_too_early_are_refused(offset: int) -> None:
    with pytest.raises(LayoutError, match="takes 6 bytes"):
        PAIR.unpack(bytes(6), offset)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(LayoutError, match="no field third"):
        PAIR.pack(third=1)


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LayoutError, match="pair"):
        PAIR.pack(second=1 << 16)


@pytest.mark.parametrize(
    ("fmt", "names"), [("IH", ("a", "b")), ("<IH", ("a",)), ("<I", ("a", "b"))]
)
def test_a_format_that_is_not_named_through_is_refused(fmt: str, names: tuple[str, ...]) -> None:
    with pytest.raises(LayoutError):
        Layout("wrong", fmt, *names)


HEADED = Payload("headed", (Layout("head", "=I", "count"),), item=PAIR, count="count", padded=False)
RAW = Payload("raw", (Layout("head", "=I", "size"),), raw="size")
EITHER = Payload("either", (TEXT, PAIR))


def test_items_are_counted_and_split() -> None:
    data = HEADED.encode(items=[{"first": 1}, {"second": 2}])
    assert HEADED.decode(data) == {
        "count": 2,
        "items": [{"first": 1, "second": 0}, {"first": 0, "second": 2}],
    }


def test_a_count_is_not_believed_beyond_the_bytes_that_came() -> None:
    with pytest.raises(LayoutError, match="4294967295 items"):
        HEADED.decode(b"\xff\xff\xff\xff" + PAIR.pack())


def test_bytes_past_the_items_are_refused_unless_padding_is_legal() -> None:
    data = HEADED.encode(items=[{}]) + b"more"
    with pytest.raises(LayoutError, match="takes 10 bytes, not 14"):
        HEADED.decode(data)
    padded = Payload("padded", HEADED.heads, item=PAIR, count="count", padded=True)
    assert len(padded.decode(data)["items"]) == 1


def test_raw_bytes_follow_their_count() -> None:
    assert RAW.encode(data=b"abc") == b"\3\0\0\0abc"
    assert RAW.decode(b"\3\0\0\0abc") == {"size": 3, "data": b"abc"}
    with pytest.raises(LayoutError):
        RAW.decode(b"\4\0\0\0abc")
    with pytest.raises(LayoutError):
        RAW.decode(b"\2\0\0\0abc")


def test_heads_are_told_apart_by_their_size() -> None:
    assert EITHER.decode(PAIR.pack(first=1)) == {"first": 1, "second": 0}
    assert EITHER.decode(bytes(16)) == {"uuid": bytes(16)}
    assert EITHER.encode(first=1) == PAIR.pack(first=1)
    with pytest.raises(LayoutError, match="16 or 6"):
        EITHER.decode(bytes(7))


def test_nothing_is_nothing() -> None:
    nothing = Payload("nothing")
    assert nothing.decode(b"") == {}
    assert nothing.encode() == b""
    with pytest.raises(LayoutError):
        nothing.decode(b"x")
    with pytest.raises(LayoutError):
        nothing.encode(value=1)


def test_an_optional_payload_may_be_absent() -> None:
    optional = Payload("optional", (PAIR,), optional=True)
    assert optional.decode(b"") == {}
    assert optional.encode() == b""
    assert optional.encode(first=1) == PAIR.pack(first=1)
