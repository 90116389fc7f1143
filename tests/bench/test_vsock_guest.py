"""The parts of the comparison of streams in a Linux guest that need no guest."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bench import vsock
from tests.bench.contenders import Taken
from tests.bench.findings import Finding, Row
from tests.bench.rounds import Effort
from tests.bench.streams import TO_GUEST, TO_HOST, UNIT, WORKS
from tests.bench.vsock_guest import ORDER, Bulk, spent
from tests.bench.work import Case, Work

TIMEOUT_S = 10.0
COUNT = 1000


def in_guest(sock: socket.socket, short: int) -> tuple[int, int]:
    """What clients/bulk.c does with one order, which it returns; it ends `short` bytes early."""
    receives, size = ORDER.unpack(sock.recv(ORDER.size, socket.MSG_WAITALL))
    if receives:
        assert len(sock.recv(size - short, socket.MSG_WAITALL)) == size - short
        sock.sendall(bytes(0 if short else 1))
    else:
        sock.sendall(bytes(size - short))
    sock.close()
    return receives, size


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_sample_counts_once_every_byte_has_moved(work: Work, short: int) -> None:
    program, guest = socket.socketpair()
    with program, guest, ThreadPoolExecutor(1) as pool:
        # Without a time-out of its own, for that would end MSG_WAITALL early.
        program.settimeout(TIMEOUT_S)
        order = pool.submit(in_guest, guest, short)
        bulk = Bulk(program, Case(work, depth=1))
        if short:
            with pytest.raises(ConnectionError):
                bulk.run(COUNT)
        else:
            outcome = bulk.run(COUNT)
            assert (outcome.completed, outcome.failed) == (COUNT, 0)
            assert outcome.seconds > 0
        assert order.result(TIMEOUT_S) == (work is TO_GUEST, COUNT * UNIT)


def finding(missing: dict[str, str]) -> Finding:
    """Of two rounds, one of which the peer has not."""
    ours, theirs = Row(vsock.OURS, vsock.OURS, 1), Row(vsock.RUST, vsock.RUST, 1)
    for number, (rate, cpu_ns) in enumerate([(2e5, 3e3), (9e5, 1e3)]):
        ours.samples[number] = Taken(rate, 0.0, 0.0, cpu_ns, 0.0, True)
    theirs.samples[0] = Taken(1e5, 0.0, 0.0, 6e3, 0.0, True)
    return Finding("to-host", TO_HOST.title, "User-Mode Linux", [ours, theirs], missing)


def test_ratios_of_cpu_time_are_of_the_same_rounds() -> None:
    (line,) = spent(finding({}))
    assert line == "  CPU of vuproc / vhost-device-vsock: 0.50 (0.50-0.50)"


@pytest.mark.parametrize("missing", [{}, {vsock.SLEEPS: "it has no guest"}])
def test_with_guests_the_options_hold_and_a_side_that_is_missing_is_an_error(
    missing: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[Case], Effort]] = []

    def measured(cases: list[Case], effort: Effort) -> list[Finding]:
        asked.append((cases, effort))
        return [finding(missing)]

    monkeypatch.setattr(vsock, "measure_in_guests", measured)
    options = ["--rounds", "7", "--seconds", "0.5", "--tries", "2", "--only", "to-host"]
    assert vsock.main(["--guest", *options]) == len(missing)
    (((case,), effort),) = asked
    assert case.work is TO_HOST
    assert (effort.rounds, effort.seconds, effort.tries) == (7, 0.5, 2)
    said = capsys.readouterr().out
    assert "vuproc / vhost-device-vsock: 2.00 (2.00-2.00)" in said
    assert "CPU of vuproc / vhost-device-vsock: 0.50" in said
    assert all(f"not measured: {side}: {why}" in said for side, why in missing.items())
    assert "the bar is" not in said


def test_a_linux_guest_does_not_watch_its_ring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        vsock.main(["--guest", "--waits", "poll"])
    assert ended.value.code == 2
    assert "--guest goes without --waits poll" in capsys.readouterr().err
