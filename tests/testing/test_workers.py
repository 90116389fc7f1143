"""A served device as its operator sees it: status, workers that are killed, changes of its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testing import echo
from tests.testing.authors_devices import Echo
from vuproc.testing import NoConfigChange, Served, ServeFailed, serve
from vuproc.testing.plugin import ServeDevice


def runs(pid: int) -> bool:
    """Whether there is such a process, and not merely its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_status_is_typed(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo, queues=2)
    assert not served.status().connected
    with served.guest(queues=2) as guest:
        guest.do(1, [b"x"], [1])
        status = served.status()
        assert status.connected
        assert status.pid == served.pid
        assert [queue.state for queue in status.queues] == ["running", "running"]
        assert [queue.requests for queue in status.queues] == [0, 1]
        assert len({queue.pid for queue in status.queues}) == 2


def test_a_killed_worker_is_gone_and_replaced(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo, queues=2)
    with served.guest(queues=2) as guest:
        before = served.status().queues
        killed = served.kill_worker(1)
        assert killed == before[1].pid
        assert not runs(killed)
        fresh = served.wait_worker(1, other_than=killed)
        assert fresh not in (killed, before[0].pid)
        assert guest.do(1, [b"again"], [5]).content == b"again"
        after = served.status().queues
        assert (after[0].pid, after[0].restarts) == (before[0].pid, 0)
        assert (after[1].pid, after[1].restarts) == (fresh, 1)
        assert "SIGKILL" in after[1].causes[-1]


def test_a_worker_that_is_there_is_not_waited_for(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo)
    pid = served.status().queues[0].pid
    assert pid is not None
    assert served.wait_worker(timeout_s=0) == pid
    with pytest.raises(ServeFailed, match=f"queue 0 has no worker but {pid}, in time"):
        served.wait_worker(other_than=pid, timeout_s=0.1)


def test_a_queue_that_is_not_there_is_named(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo)
    with pytest.raises(ValueError, match="no queue 1: there are 1"):
        served.kill_worker(1)
    with pytest.raises(ValueError, match="no queue 1: there are 1"):
        served.wait_worker(1)


def test_a_broken_queue_is_not_waited_for(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo)
    with served.guest() as guest:
        queue = guest.queues[0]
        queue.split.offer_head(queue.size)
        queue.ring.publish()
        queue.kick()
        assert queue.err_bell.wait(30)
        line = served.wait_for_line("queue 0: broken: ")
        with pytest.raises(ServeFailed, match="queue 0 is broken: ") as caught:
            served.wait_worker(other_than=served.status().queues[0].pid)
        assert line in caught.value.lines


def test_a_device_that_has_ended_has_no_status(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo)
    served.stop()
    with pytest.raises(ServeFailed):
        served.status()


@pytest.fixture
def device_file(tmp_path: Path) -> Path:
    return _write(tmp_path / "gauge.yaml", 7)


@pytest.fixture
def gauge(device_file: Path) -> Iterator[Served]:
    with serve(device_file) as served:
        yield served


def _write(path: Path, level: int) -> Path:
    path.write_text(
        f"socket: ./gauge.sock\ndevice: {{type: '{echo.__file__}:Gauge', level: {level}}}\n"
    )
    return path


def test_a_changed_configuration_space_is_announced(gauge: Served, device_file: Path) -> None:
    with gauge.guest(channel=True) as guest:
        assert guest.config(4) == b"\7\0\0\0"
        _write(device_file, 8)
        assert any("level" in line for line in gauge.reload())
        assert guest.wait_config_change(size=4) == b"\x08\0\0\0"
        assert guest.do(in_=[4]).content == b"\x08\0\0\0"


def test_an_announcement_before_the_wait_counts_and_only_once(
    gauge: Served, device_file: Path
) -> None:
    with gauge.guest(channel=True) as guest:
        _write(device_file, 9)
        gauge.reload()
        guest.do(in_=[4])
        assert guest.wait_config_change(size=6) == b"\x09\0\0\0\0\0"
        with pytest.raises(NoConfigChange, match=r"within 0\.1 s"):
            guest.wait_config_change(0.1)


def test_without_a_channel_nothing_can_be_announced(gauge: Served) -> None:
    with gauge.guest() as guest:
        with pytest.raises(ValueError, match="channel=True"):
            guest.wait_config_change()


def test_a_reload_that_is_refused_says_why(gauge: Served, device_file: Path) -> None:
    _write(device_file, -1)
    with pytest.raises(ServeFailed, match="level"):
        gauge.reload()
