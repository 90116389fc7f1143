"""The log for programs: JSON a line, and the journal's own protocol."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vuproc import log_formats
from vuproc.events import Connected, Ready, WorkerDied
from vuproc.handover.keeper.error_output import LINE_BYTES
from vuproc.log_formats import JournalFormat, JsonFormat, Line, datagram, event_name, line_of
from vuproc.logs import Log
from vuproc.testing.serve import serve

BOUND_S = 20.0
DIED = WorkerDied(queues=(0, 1), pid=7, how="killed", then=", starting another", serving=((0, 3),))
HOSTILE = 'two\nlines "quoted" \x1b[2J \ud800'


def record(message: str, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("vuproc.master", level, __file__, 1, message, args, None)


def fields_of(data: bytes) -> dict[str, str]:
    """A datagram, as the journal reads it."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        found[name.decode()] = value.decode()
    return found


def test_an_event_has_its_fields() -> None:
    line = line_of(record("%s", DIED, level=logging.WARNING))
    assert line.level == "WARNING" and line.text == str(DIED)
    assert line.fields["event"] == "worker_died"
    assert line.fields["pid"] == 7 and list(line.fields["queues"]) == [0, 1]
    assert line_of(record("no event: %s", "this")).fields == {}
    assert event_name(Connected()) == "connected"


# JSON.


@pytest.fixture
def shown() -> Iterator[tuple[JsonFormat, int]]:
    reader, writer = os.pipe()
    shown = JsonFormat("disk", writer)
    yield shown, reader
    shown._output.close()
    os.close(reader)
    os.close(writer)


def lines_in(reader: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in os.read(reader, 1 << 16).decode().splitlines()]


def test_a_line_is_an_object(shown: tuple[JsonFormat, int]) -> None:
    format, reader = shown
    logger = logging.Logger("vuproc.test", logging.DEBUG)
    logger.addHandler(Log(format))
    logger.error("%s", HOSTILE)
    logger.warning("%s", DIED)
    first, second = lines_in(reader)
    assert first["text"] == "two\n" + r'lines "quoted" \x1b[2J \ud800'
    assert (first["level"], first["device"], first["logger"]) == ("error", "disk", "vuproc.test")
    assert first["time"].endswith("Z")
    assert second["event"] == "worker_died" and second["serving"] == [[0, 3]]


@pytest.mark.parametrize("text", ["x" * 100_000, "\u00e4" * 16000, '"' * 9000, "a\n" * 9000])
def test_a_long_text_is_cut_so_that_the_line_is_json(
    shown: tuple[JsonFormat, int], text: str
) -> None:
    format, reader = shown
    format.show(Line("ERROR", text, fields={"event": "ready", "device": "y" * 50}))
    (found,) = lines_in(reader)
    assert found["level"] == "error" and found["text"][:1] == text[:1]
    assert len(json.dumps(found)) <= LINE_BYTES


def test_fields_that_are_too_long_are_left_out(shown: tuple[JsonFormat, int]) -> None:
    format, reader = shown
    format.show(Line("INFO", "text", fields={"event": "ready", "how": "z" * 10_000}))
    assert set(lines_in(reader)[0]) == {"time", "level", "device", "logger", "text"}


def test_an_events_own_device_has_another_name(shown: tuple[JsonFormat, int]) -> None:
    format, reader = shown
    format.show(Line("INFO", "text", fields={"event": "ready", "device": "blk"}))
    (found,) = lines_in(reader)
    assert (found["device"], found["event_device"]) == ("disk", "blk")


def test_what_nobody_read_is_said_in_json(shown: tuple[JsonFormat, int]) -> None:
    format, reader = shown
    for number in range(100_000):
        format.show(Line("INFO", f"{number}: {'x' * 1000}"))
        if format._output.lost:
            break
    assert format.due() is not None
    data = b""
    while len(data) < 1 << 16 and (more := os.read(reader, 1 << 16)):
        data += more
        if format._output.lost:
            format.say_lost()
        else:
            break
    texts = [json.loads(line)["text"] for line in data.decode().splitlines()]
    assert any(text.startswith("lines not shown, as nobody read them: ") for text in texts)


# The journal.


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(BOUND_S)
        yield sock


def test_the_journal_gets_fields_and_priority(journal: socket.socket) -> None:
    format = JournalFormat("disk", journal.getsockname())
    format.show(line_of(record("%s", DIED, level=logging.WARNING)))
    data = journal.recv(65536)
    fields = fields_of(data)
    assert fields["MESSAGE"] == str(DIED)
    assert fields["PRIORITY"] == "4" and fields["SYSLOG_IDENTIFIER"] == "vuproc"
    assert fields["VUPROC_DEVICE"] == "disk" and fields["VUPROC_EVENT"] == "worker_died"
    assert fields["VUPROC_PID"] == "7"
    assert data.count(b"\nVUPROC_QUEUE=") == 2 and b"\nVUPROC_QUEUE=0\nVUPROC_QUEUE=1\n" in data
    format.close()


def test_an_event_does_not_take_the_place_of_our_own_fields() -> None:
    """A ready device's type is called `device` in its event, and took that name."""
    ready = Ready(device="blk", queues=2, workers=2, pid=7)
    fields = fields_of(datagram("disk", line_of(record("%s", ready))))
    assert fields["VUPROC_DEVICE"] == "disk" and fields["VUPROC_EVENT_DEVICE"] == "blk"
    assert fields["VUPROC_QUEUES"] == "2" and "VUPROC_QUEUE" not in fields


def test_no_text_can_add_a_field() -> None:
    line = Line("ERROR", "one\nPRIORITY=0\n", fields={"how": "a\nMESSAGE=b"})
    fields = fields_of(datagram("disk", line))
    assert fields["MESSAGE"] == "one\nPRIORITY=0\n" and fields["PRIORITY"] == "3"
    assert fields["VUPROC_HOW"] == "a\nMESSAGE=b"


def test_a_journal_that_does_not_read_costs_lines_and_no_time(journal: socket.socket) -> None:
    format = JournalFormat("disk", journal.getsockname())
    count = 0
    while not format._lost:
        format.show(Line("INFO", "x" * 1000))
        count += 1
        assert count < 100_000
    format.show(Line("INFO", "lost, too"))
    assert format.due() == 1.0
    for _ in range(count - 1):
        journal.recv(65536)
    format.say_lost()
    text = fields_of(journal.recv(65536))["MESSAGE"]
    assert text == "lines not shown, as the journal had no room: 2"
    assert format.due() is None
    format.close()


def test_without_a_journal_it_is_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    format = JournalFormat("disk", str(tmp_path / "none"))
    format.show(Line("INFO", "here"))
    warning, line = capfd.readouterr().err.splitlines()
    assert "the log goes to standard error" in warning
    assert line == "vuproc disk: INFO: here"


def test_a_journal_that_leaves_is_no_end(
    journal: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    format = JournalFormat("disk", journal.getsockname())
    journal.close()
    format.show(Line("INFO", "here"))
    assert capfd.readouterr().err == "vuproc disk: INFO: here\n"


def test_a_device_that_is_served_logs_in_json() -> None:
    with serve({"type": "blk", "ram": "1MiB"}, file={"log_format": "json"}) as served:
        served.guest().close()
        served.kill_worker(0)
        served.wait_for_line("worker_died")
        served.wait_for_line("worker_replaced")
    found = [json.loads(line) for line in served.lines]
    died = next(line for line in found if line.get("event") == "worker_died")
    assert died["how"] == f"killed by {signal.SIGKILL.name}" and died["level"] == "warning"
    assert {line["device"] for line in found} == {"device"}
    assert log_formats.event_name(Connected()) in {line.get("event") for line in found}
