"""Standard error that nobody reads, and how many lines of a place are shown."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import socket
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vuproc import log_limit
from vuproc.handover.keeper.error_output import LINE_BYTES, ErrorOutput
from vuproc.log_formats import TextFormat
from vuproc.log_limit import BURST, PERIOD_S, LogLimit, apart
from vuproc.logs import Log

LINE = f"{'vuproc disk: INFO: ':x<63}"
"""With its end 64 bytes: pages are filled without a rest in which a shorter line had room."""


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def opened(number: int) -> Iterator[ErrorOutput]:
    output = ErrorOutput("vuproc disk: WARNING: ", number)
    try:
        yield output
    finally:
        output.close()


def fill(output: ErrorOutput) -> int:
    """Write until there is no room; how many lines found some."""
    for count in range(100_000):
        output.write(LINE)
        if output.lost:
            return count
    raise AssertionError("there is always room")


def drain(read: Callable[[], bytes]) -> list[str]:
    data = b""
    try:
        while more := read():
            data += more
    except BlockingIOError:
        pass
    return data.decode().replace("\r\n", "\n").splitlines()


def a_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16384)
    return reader, writer


def a_socket() -> tuple[int, int]:
    """As a service manager's journal has it."""
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


def a_terminal() -> tuple[int, int]:
    """Its user has pressed Ctrl-S."""
    reader, writer = pty.openpty()
    termios.tcflow(writer, termios.TCOOFF)
    return reader, writer


@pytest.mark.parametrize("open_new", [True, False], ids=["opened anew", "polled"])
@pytest.mark.parametrize("make", [a_pipe, a_socket, a_terminal])
def test_a6_an_output_that_nobody_reads_costs_lines_and_no_time(
    make: Callable[[], tuple[int, int]], open_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not open_new:

        def refused(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr("vuproc.handover.keeper.error_output.os.open", refused)
    reader, writer = make()
    try:
        with opened(writer) as output:
            flags = fcntl.fcntl(writer, fcntl.F_GETFL)
            shown = fill(output)
            for _ in range(9):
                output.write(LINE)
            assert output.lost == 10
            assert output.due() is not None
            assert not output.say_lost()
            if make is a_terminal:
                termios.tcflow(writer, termios.TCOON)
            os.set_blocking(reader, False)
            lines = drain(lambda: os.read(reader, 65536))
            assert len(lines) >= shown
            assert output.say_lost()
            assert output.due() is None
            output.write("and on")
            lines += drain(lambda: os.read(reader, 65536))
            told = "vuproc disk: WARNING: lines not shown, as nobody read them: 10"
            assert lines == [*[LINE] * shown, told, "and on"]
            # Others use the same open file.
            assert fcntl.fcntl(writer, fcntl.F_GETFL) == flags
    finally:
        os.close(reader)
        os.close(writer)


def test_a6_a_file_is_written_where_its_other_users_have_come_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file, opened(file.fileno()) as output:
        output.write("one\ntwo")
        file.write(b"another's\n")
        output.write("three")
    assert (tmp_path / "log").read_text() == "one\ntwo\nanother's\nthree\n"


def test_a6_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = a_pipe()
    with opened(writer) as output:
        os.close(reader)
        output.write(LINE)
        assert not output.lost
    os.close(writer)


def test_a6_a_descriptor_that_is_closed_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with opened(writer) as output:
        output.write(LINE)
        assert not output.lost


def test_a6_a_line_is_cut_to_what_a_pipe_takes_as_a_whole() -> None:
    reader, writer = a_pipe()
    with opened(writer) as output:
        output.write("x" * 10_000)
        assert os.read(reader, 65536) == b"x" * LINE_BYTES + b"\n"
    os.close(reader)
    os.close(writer)


# How many lines of a place are shown.


def say(limit: LogLimit, key: str, count: int, *, burst: int = BURST, once: bool = False) -> int:
    """So many lines from one place; how many were shown."""
    return sum(
        limit.admits(key, lambda: f"{key} spoke", burst=burst, once=once) for _ in range(count)
    )


def test_c7_each_place_has_a_bound_of_its_own() -> None:
    limit = LogLimit(8)
    assert say(limit, "one", 1000) == BURST
    assert say(limit, "other", 3) == 3


def test_c7_what_was_not_shown_is_counted_and_said_without_another_line() -> None:
    clock = Clock()
    limit = LogLimit(8, clock=clock)
    assert say(limit, "one", 15, burst=1) == 1
    assert limit.due() == pytest.approx(PERIOD_S)
    assert limit.counts() == []
    clock.now += PERIOD_S
    assert limit.due() == 0.0
    assert limit.counts() == ["14 more like this in 5 s: one spoke"]
    assert limit.due() is None
    assert limit.counts() == []


def test_c7_a_place_that_goes_on_is_shown_again_unless_once_was_enough() -> None:
    clock = Clock()
    limit = LogLimit(8, clock=clock)
    for period in range(3):
        shown = say(limit, "line", 30), say(limit, "failure", 30, burst=1, once=True)
        assert shown == (BURST, 0 if period else 1)
        clock.now += PERIOD_S
        assert len(limit.counts()) == 2
    clock.now += PERIOD_S
    assert say(limit, "failure", 2, burst=1, once=True) == 1, "it had been silent"


def test_c7_places_are_bounded_and_those_too_many_are_counted_together() -> None:
    clock = Clock()
    limit = LogLimit(4, clock=clock)
    assert [say(limit, f"place {number}", 1) for number in range(6)] == [1, 1, 1, 1, 0, 0]
    clock.now += PERIOD_S
    assert limit.counts() == ["2 more of other kinds in 5 s: place 4 spoke"]
    clock.now += 10 * PERIOD_S
    assert [say(limit, f"place {number}", 1) for number in range(6, 12)] == [1, 1, 1, 1, 0, 0]
    clock.now += PERIOD_S
    assert limit.counts() == ["2 more of other kinds in 5 s: place 10 spoke"]
    assert say(limit, "place 7", 1) == 1, "the first ones have been silent"


def test_c7_all_places_together_are_bounded() -> None:
    clock = Clock()
    limit = LogLimit(100, 30, clock)
    assert sum(say(limit, f"place {number}", 10) for number in range(10)) == 30
    clock.now += PERIOD_S
    assert say(limit, "place 0", 1) == 1


# The master's log.


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Log, logging.Logger, list[str]]]:
    """A log, a logger that writes to it, and what it has shown."""
    lines: list[str] = []
    with open(os.devnull, "wb") as nowhere, opened(nowhere.fileno()) as output:
        monkeypatch.setattr(output, "write", lambda text: lines.extend(text.split("\n")))
        log = Log(TextFormat("disk", output))
        logger = logging.Logger("vuproc.test", logging.DEBUG)
        logger.addHandler(log)
        yield log, logger, lines
        log.close()


def test_a7_nothing_in_a_text_looks_like_a_line_of_the_log(
    shown: tuple[Log, logging.Logger, list[str]],
) -> None:
    _, logger, lines = shown
    logger.error("two\nvuproc disk: ERROR: queue 0: broken\x1b[2J \ud800")
    assert lines == [
        "vuproc disk: ERROR: two",
        r"  vuproc disk: ERROR: queue 0: broken\x1b[2J \ud800",
    ]


def test_c7_a_worker_that_keeps_to_no_bound_is_held_to_one_and_hides_nobody(
    shown: tuple[Log, logging.Logger, list[str]],
) -> None:
    log, logger, lines = shown
    for worker in (1, 2):
        for _ in range(1000):
            logger.info("line", extra=apart(("worker", worker), 600))
    logger.info("the master's own")
    assert len(lines) == 2 * 600 + 1
    log.close()
    assert lines[-2:] == ["vuproc disk: WARNING: 400 more like this in 1 s: line"] * 2


def test_c7_lines_for_debugging_have_no_bound(
    shown: tuple[Log, logging.Logger, list[str]],
) -> None:
    _, logger, lines = shown
    for _ in range(100):
        logger.debug("message")
    assert len(lines) == 100


def test_c7_the_counts_of_the_log_come_by_themselves(
    shown: tuple[Log, logging.Logger, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, logger, lines = shown
    for number in range(25):
        logger.warning("refused %d", number)
    due = log.due()
    assert due is not None and 0 < due <= PERIOD_S
    monkeypatch.setattr(log_limit, "PERIOD_S", 0.0)
    log.tend()
    assert lines[BURST:] == ["vuproc disk: WARNING: 5 more like this in 1 s: refused 20"]
    assert log.due() is None
