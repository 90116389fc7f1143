"""Buckets of tokens in shared memory."""

from __future__ import annotations

import mmap
import os
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vuproc.shm.rate import WORD_BYTES, Rate

NS = 1_000_000_000
LONGEST_NS = 30 * 86400 * NS


def test_a_fresh_bucket_is_full_and_then_fills_at_its_rate() -> None:
    rate = Rate(bytearray(WORD_BYTES), 0, 1000, 50)
    began = time.monotonic_ns()
    assert rate.grant(80) == 50
    got = 0
    while got < 100:
        got += rate.grant(100)
    took = time.monotonic_ns() - began
    assert got <= took * 1000 / NS


def test_what_was_not_used_is_given_back() -> None:
    rate = Rate(bytearray(WORD_BYTES), 0, 0.02, 10)
    assert rate.grant(10) == 10
    assert rate.grant(1) == 0
    rate.spend(-4)
    assert rate.grant(10) == 4
    rate.spend(-1000)  # it holds no more than its burst
    assert rate.grant(100) == 10


def test_a_debt_is_waited_for() -> None:
    rate = Rate(bytearray(WORD_BYTES), 0, 1000, 1)
    assert rate.wait_ns() == 0
    rate.spend(1001)
    assert 0.99 * NS < rate.wait_ns() <= 1.001 * NS
    assert rate.grant(1) == 0


def test_nobody_wakes_up_for_each_token() -> None:
    rate = Rate(bytearray(WORD_BYTES), 0, 100_000, 10_000)
    assert rate.grant(10_000) > 9_000
    rate.spend(10_000)
    wait = rate.wait_ns()
    assert wait > 1_000_000  # a hundred tokens' time beside the debt


def test_words_are_apart_and_of_everybody_who_maps_them() -> None:
    with mmap.mmap(-1, 2 * WORD_BYTES) as shared:
        one, again, other = (Rate(shared, index, 0.02, 5) for index in (0, 0, 1))
        assert one.grant(3) == 3
        assert again.grant(3) == 2
        assert other.grant(9) == 5
        del one, again, other


def test_processes_take_no_more_together_than_there_is() -> None:
    """All of them at once, until none gets any for a while: each token is had once."""
    with mmap.mmap(-1, WORD_BYTES) as shared:
        pipes = []
        for _ in range(3):
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                rate, got = Rate(shared, 0, 0.02, 30_000), 0
                while granted := rate.grant(1):
                    got += granted
                os.write(theirs, struct.pack("=Q", got))
                os._exit(0)
            os.close(theirs)
            pipes.append((pid, ours))
        total = 0
        for pid, ours in pipes:
            total += struct.unpack("=Q", os.read(ours, 8))[0]
            os.close(ours)
            assert os.waitpid(pid, 0)[1] == 0
        assert total == 30_000


@given(
    word=st.integers(0, 2**64 - 1),
    per_second=st.floats(1e-3, 1e9),
    burst=st.floats(1, 1e9),
    wanted=st.integers(-5, 2**31 - 1),
    tokens=st.floats(-1e18, 1e18),
)
def test_whatever_the_word_says_answers_are_in_bounds(
    word: int, per_second: float, burst: float, wanted: int, tokens: float
) -> None:
    """It is shared with processes that a guest may have taken over."""
    memory = bytearray(struct.pack("=Q", word))
    rate = Rate(memory, 0, per_second, burst)
    assert 0 <= rate.grant(wanted) <= max(0, wanted)
    assert 0 <= rate.wait_ns() <= LONGEST_NS
    rate.spend(tokens)
    assert 0 <= rate.wait_ns() <= LONGEST_NS


@pytest.mark.parametrize(
    ("per_second", "burst"),
    [(0, 1), (-1, 1), (1, 0), (1, 0.5), (2**41, 1), (1, 2**41)],
)
def test_other_rates_are_refused(per_second: float, burst: float) -> None:
    with pytest.raises(ValueError, match="a second with bursts of"):
        Rate(bytearray(8), 0, per_second, burst)


@pytest.mark.parametrize(("size", "index"), [(8, 1), (8, -1), (7, 0), (0, 0)])
def test_words_that_are_not_there_are_refused(size: int, index: int) -> None:
    with pytest.raises(ValueError, match="no word"):
        Rate(bytearray(size), index, 1, 1)
