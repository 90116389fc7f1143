"""Text of others on its way into a log: cut, escaped, and never a reason to fail."""

from __future__ import annotations

import logging
import sys
import traceback

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vuproc import texts

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=400)
"""Lone surrogates and control characters among it."""


class Unprintable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise LookupError("no words")

    __repr__ = __str__


class Foreign(str):
    """A string that is not what it says."""

    def __str__(self) -> str:
        raise LookupError

    __format__ = __len__ = __getitem__ = None  # type: ignore[assignment]


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return raised


@given(ANY_TEXT, st.integers(64, 300))
def test_a7_a_line_is_one_printable_line_of_bounded_bytes(text: str, limit: int) -> None:
    shown = texts.line(text, limit)
    assert len(shown.encode()) <= limit
    assert shown.replace("\t", "").isprintable()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(shown)) == shown
    assert texts.line(shown, limit) == shown


@given(ANY_TEXT, st.integers(300, 2000))
def test_a7_a_block_is_printable_lines_of_bounded_bytes(text: str, limit: int) -> None:
    shown = texts.block(text * 8, limit)
    assert len(shown.encode()) <= limit
    assert all(each.replace("\t", "").isprintable() for each in shown.split("\n"))
    assert texts.block(shown, limit) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, grün, 日本", "plain, grün, 日本"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("lone \ud800", r"lone \ud800"),
        ("right to \u202eleft", r"right to \u202eleft"),
        ("a\tb", "a\tb"),
        ("", ""),
    ],
)
def test_a7_what_cannot_be_printed_is_escaped(text: str, shown: str) -> None:
    assert texts.line(text) == shown


def test_a7_what_is_cut_off_is_counted() -> None:
    shown = texts.line("x" * 100_000)
    assert len(shown) == texts.LINE_BYTES
    assert shown.endswith("x... (100000 characters)")


def test_a7_a_long_line_in_a_block_is_one_line() -> None:
    shown = texts.block("x" * 100_000 + "\nend")
    assert shown == texts.line("x" * 100_000) + "\nend"


def test_a7_a_block_keeps_its_first_and_its_last_lines() -> None:
    shown = texts.block("\n".join(f"line {number}" for number in range(100_000))).split("\n")
    assert shown[0] == "line 0"
    assert shown[-1] == "line 99999"
    (notice,) = [each for each in shown if "left out" in each]
    assert notice == f"... ({100_000 - len(shown) + 1} lines are left out)"
    assert len(shown) <= texts.BLOCK_BYTES // texts.SHORTEST


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (LookupError("missing part"), "LookupError: missing part"),
        (LookupError(), "LookupError"),
        (LookupError("a\nb"), r"LookupError: a\nb"),
        (Unprintable(), "Unprintable: <exception str() failed>"),
        (UnicodeError("\udcff"), r"UnicodeError: \udcff"),
        (LookupError(Foreign("as it is")), "LookupError: <exception str() failed>"),
        (
            OSError(2, "not there", "\udc80.raw"),
            r"FileNotFoundError: [Errno 2] not there: '\udc80.raw'",
        ),
    ],
)
def test_a7_an_exception_in_one_line(error: BaseException, shown: str) -> None:
    assert texts.described(error) == shown


def test_c12_a_traceback_is_as_python_prints_it() -> None:
    error = caught(LookupError("missing part"))
    assert texts.traceback_of(error) == "".join(traceback.format_exception(error)).rstrip()
    assert "\n\n" not in texts.traceback_of(error)


def test_a7_a_traceback_of_an_exception_that_cannot_be_shown() -> None:
    shown = texts.traceback_of(caught(Unprintable()))
    assert shown.startswith("Traceback (most recent call last):\n")
    assert shown.endswith("Unprintable: <exception str() failed>")


def test_a7_a_log_record_whose_arguments_do_not_fit_says_where_it_is() -> None:
    record = logging.LogRecord("x", logging.INFO, "device.py", 41, "%d", ("no number",), None)
    assert texts.logged(record).startswith("device.py:41: cannot be put together: TypeError: ")


def test_a7_a_log_record_has_the_traceback_of_its_exception() -> None:
    try:
        raise LookupError("missing part")
    except LookupError:
        record = logging.LogRecord("x", logging.INFO, "f.py", 1, "failed", (), sys.exc_info())
    first, second, *_, last = texts.logged(record).split("\n")
    assert (first, second) == ("failed", "Traceback (most recent call last):")
    assert last == "LookupError: missing part"


@pytest.mark.parametrize(
    ("duration", "shown"),
    [(1.9999993790006556, "2 s"), (0.25, "0.25 s"), (1.99812, "1.998 s"), (30.0, "30 s")],
)
def test_c12_durations_are_rounded(duration: float, shown: str) -> None:
    assert texts.seconds(duration) == shown
