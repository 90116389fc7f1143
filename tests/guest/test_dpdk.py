"""DPDK's virtio-user driver on a served network device: it polls, and takes packed rings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest

from vuproc.spec.virtio import Feature
from vuproc.testing import Served, serve
from vuproc.testing.vms import Dpdk

pytestmark = pytest.mark.timeout(180)

RX, TX = 0, 1
SENT = 2_000
"""Frames that are to pass before anything is looked at."""
DEATHS = 5
BATCH = 64
"""Requests that a ring has completed and not shown, at most."""
SETTLED_S = 60.0
LOOK_S = 0.02

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def requests(served: Served, first: int) -> int:
    """Of all receive queues (first 0), or all transmit queues (first 1)."""
    return sum(queue.requests for queue in served.status().queues[first::2])


def dropped(served: Served, first: int) -> int:
    return sum(queue.counters["dropped"] for queue in served.status().queues[first::2])


def wait_requests(served: Served, first: int, count: int) -> None:
    """Until at least so many frames have passed."""
    deadline = time.monotonic() + SETTLED_S
    while (there := requests(served, first)) < count:
        assert time.monotonic() < deadline, f"{there} of {count} frames after {SETTLED_S:g} s"
        time.sleep(LOOK_S)


def errors(served: Served) -> list[str]:
    return [line for line in served.lines if "ERROR" in line]


def features_taken(served: Served) -> set[int]:
    """All that the driver has acknowledged, by a log with `log_level: debug`."""
    said = [line.partition(" SET_FEATURES value=")[2] for line in served.lines]
    return {int(rest.split()[0], 0) for rest in said if rest}


@LAYOUTS
@pytest.mark.parametrize("pairs", [1, 2])
def test_what_is_sent_into_nothing_is_counted_by_both(packed: bool, pairs: int) -> None:
    with serve({"type": "net", "pairs": pairs}) as served:
        with Dpdk(served.socket, pairs=pairs, packed=packed) as port:
            port.start("txonly")
            wait_requests(served, TX, SENT)
            port.stop()
            sent = port.stats().sent
            wait_requests(served, TX, sent)
            assert all(queue.requests for queue in served.status().queues[TX::2])
            port.quit()
        assert requests(served, TX) == dropped(served, TX) == sent
        assert requests(served, RX) == 0
        assert not errors(served)


@pytest.mark.proves("VIRTIO_F_IN_ORDER", front_end="DPDK 22.11")
@LAYOUTS
def test_it_takes_its_buffers_back_in_order(
    packed: bool, shown: Callable[[Iterable[str]], None]
) -> None:
    with serve({"type": "net"}, file={"log_level": "debug"}) as served:
        with Dpdk(served.socket, packed=packed) as port:
            port.start("txonly")
            wait_requests(served, TX, SENT)
            port.stop()
            port.quit()
        taken = features_taken(served)
        wanted = Feature.IN_ORDER | (Feature.RING_PACKED if packed else 0)
        assert {value & (Feature.IN_ORDER | Feature.RING_PACKED) for value in taken} == {wanted}
        assert not errors(served)
    shown(served.lines)


def test_it_leaves_an_iommu_alone_and_says_where_things_are() -> None:
    """The back-end offers ACCESS_PLATFORM, which virtio-user knows nothing of."""
    with serve({"type": "net"}, file={"log_level": "debug", "iommu": True}) as served:
        with Dpdk(served.socket, packed=True) as port:
            port.start("txonly")
            wait_requests(served, TX, SENT)
            port.stop()
            port.quit()
        taken = features_taken(served)
        assert taken and not any(value & Feature.ACCESS_PLATFORM for value in taken)
        assert not errors(served)


@LAYOUTS
@pytest.mark.parametrize("pairs", [1, 2])
def test_what_is_sent_comes_back_and_is_counted_by_both(packed: bool, pairs: int) -> None:
    with serve({"type": "net", "backend": "loopback", "pairs": pairs}) as served:
        with Dpdk(served.socket, pairs=pairs, packed=packed) as port:
            port.start("io", bursts=4)
            wait_requests(served, RX, SENT)
            port.stop()
            wait_requests(served, TX, port.stats().sent)
            # It takes what has come meanwhile, and sends no more.
            port.start("rxonly")
            stats = port.wait_stats(received=requests(served, RX))
            port.stop()
            assert stats.sent == requests(served, TX)
            assert stats.received == requests(served, RX) == stats.sent - dropped(served, RX)
            assert stats.receive_errors == 0
            port.quit()
        assert not errors(served)


@LAYOUTS
def test_frames_go_on_after_the_worker_is_killed(packed: bool) -> None:
    with serve({"type": "net", "backend": "loopback"}) as served:
        with Dpdk(served.socket, packed=packed) as port:
            for _ in range(DEATHS):
                port.start("io", bursts=4)
                wait_requests(served, RX, requests(served, RX) + SENT // 4)
                pid = served.kill_worker(TX)
                served.wait_worker(TX, other_than=pid)
                port.stop()
                # Every frame may have been in the dead worker's hands: new ones must pass.
                port.start("io", bursts=4)
                wait_requests(served, RX, requests(served, RX) + SENT // 4)
                port.stop()
            wait_requests(served, TX, port.stats().sent)
            port.start("rxonly")
            # A death costs what was counted and not shown yet: it is completed, and counted, again.
            counted_twice = DEATHS * BATCH
            stats = port.wait_stats(received=requests(served, RX) - counted_twice)
            port.stop()
            assert 0 <= requests(served, TX) - stats.sent <= counted_twice
            assert 0 <= requests(served, RX) - stats.received <= counted_twice
            port.quit()
        assert not errors(served)
