"""What the load generator writes and what it checks of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testing.echo import Answering
from vuproc import Device, Request
from vuproc.testing import Job, Kind
from vuproc.testing.plugin import ServeDevice

CONTENTS = [
    {"payload": b"abc"},
    {"payload": b"\xaa"},
    {"pattern": 1},
    {"pattern": -1, "indirect": False},
]


def job(**more: Any) -> Job:
    fields = {
        "count": 200,
        "depth": 8,
        "kind": Kind.PLAIN,
        "out_size": 104,
        "in_size": 103,
        "header": b"\1\2\3\4",
        "expect": b"ok:",
        "echo": True,
    }
    return Job(**{**fields, **more})


@pytest.mark.parametrize("content", CONTENTS)
def test_right_answers_are_right(vuproc_device: ServeDevice, content: dict[str, Any]) -> None:
    with vuproc_device(Answering).guest() as guest:
        stats = guest.load(0, job(**content))
        assert (stats.completed, stats.corrupt) == (200, 0)
        assert (stats.bytes_written, stats.bytes_read) == (200 * 104, 200 * 103)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("flaw", ["content", "length"])
def test_wrong_answers_are_counted(
    vuproc_device: ServeDevice, content: dict[str, Any], flaw: str
) -> None:
    with vuproc_device(Answering, flaw=flaw).guest() as guest:
        assert guest.load(0, job(**content)).corrupt == 20


def test_what_the_device_sees_is_header_and_payload(vuproc_device: ServeDevice) -> None:
    """The device skips four bytes; with another header the payload's place is another one."""
    with vuproc_device(Answering).guest() as guest:
        assert guest.load(0, job(payload=b"abc", header=b"\1\2\3", out_size=106)).corrupt == 200
        right = job(payload=b"abc", header=b"\1\2\3\4ab", expect=b"ok:ab", in_size=50)
        assert guest.load(0, right).corrupt == 0


def test_an_answer_is_checked_as_far_as_it_is_expected(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Answering).guest() as guest:
        assert guest.load(0, job(echo=False)).corrupt == 0
        assert guest.load(0, job(echo=False, expect=b"ok;")).corrupt == 200
        assert guest.load(0, job(echo=False, expect=b"")).corrupt == 0


def test_what_was_there_before_is_not_taken_for_an_answer(vuproc_device: ServeDevice) -> None:
    """The device answers with an empty payload, into areas that held right answers before."""
    with vuproc_device(Answering).guest() as guest:
        stats = guest.load(0, job(depth=1, payload=b"a", expect=b"ok:a", out_size=104, in_size=8))
        assert stats.corrupt == 0
        short = job(depth=1, header=b"\1\2\3\4", out_size=4, echo=False, expect=b"ok:a", in_size=8)
        assert guest.load(0, short).corrupt == 200


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"header": b"x" * 105}, "header longer"),
        ({"expect": b"x" * 104}, "expect longer"),
        ({"payload": b""}, "at least one byte"),
        ({"payload": b"x", "pattern": 1}, "no pattern beside it"),
        ({}, "an echo can be checked"),
        ({"payload": b"x", "in_size": 104}, "an echo of 101 bytes of a payload of 100"),
        ({"payload": b"x", "kind": Kind.BLOCK, "span": 4096}, "for PLAIN requests"),
        ({"place_at": 0, "span": 4096, "echo": False}, "not within the header"),
        ({"place_at": 0, "header": bytes(8), "echo": False}, "holds no block"),
    ],
)
def test_content_that_cannot_be_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        job(**wrong)


class Placed(Device):
    """Answers with the place that a request names."""

    device_id = 4

    def handle(self, request: Request) -> None:
        request.write(request.read()[4:12])


def test_each_request_has_a_place_of_its_own(vuproc_device: ServeDevice) -> None:
    fields: dict[str, Any] = {
        "kind": Kind.PLAIN,
        "count": 200,
        "depth": 8,
        "header": bytes(12),
        "place_at": 4,
        "block_size": 100,
        "start": 5000,
        "span": 250,
        "out_size": 12,
        "in_size": 8,
        "expect": (5100).to_bytes(8, "little"),
    }
    with vuproc_device(Placed).guest() as guest:
        # Two blocks are in the span, and every other request has the second.
        assert guest.load(0, Job(sequential=True, **fields)).corrupt == 100
        assert 0 < guest.load(0, Job(**fields)).corrupt < 200
        assert guest.load(0, Job(**{**fields, "start": 5100, "span": 100})).corrupt == 0
