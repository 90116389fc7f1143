"""Requests in flight move with their guest: the source stops at once, the destination runs them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.devices.migrant import Migrant
from tests.devices.slow import Impatient, Slow
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.testing import Served, serve

QUEUES = 2
SIZE = 128
EACH = 24
"""Requests of a queue at a time."""
FOR_EVER_S = 10000.0

pytestmark = pytest.mark.timeout(240)
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
_numbers = itertools.count()


@dataclass
class Host:
    """A device, and what it has run."""

    served: Served
    ledger: Path

    def run(self, words: Sequence[bytes]) -> Counter[bytes]:
        """How often it has run each of these requests."""
        found = Counter(self.ledger.read_bytes().split())
        return Counter({word: found[word] for word in words if found[word]})


@contextmanager
def host(folder: Path, name: str, seconds: float) -> Iterator[Host]:
    ledger = folder / name
    ledger.touch()
    device = Slow(Slow.options_type(ledger=str(ledger), seconds=seconds, queues=QUEUES))
    with serve(device) as served:
        yield Host(served, ledger)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Two that hold every second request for ever, and one that holds none."""
    folder = tmp_path_factory.mktemp("ledgers")
    with ExitStack() as stack:
        yield [
            stack.enter_context(host(folder, name, seconds))
            for name, seconds in (("one", FOR_EVER_S), ("two", FOR_EVER_S), ("last", 0.0))
        ]


class Numbered(Migrant):
    """Says a number of its own with each request."""

    def __init__(self, at: Host, *, packed: bool) -> None:
        super().__init__(at.served, QUEUES, SIZE, packed=packed)
        self.tokens: dict[bytes, tuple[int, int]] = {}

    def submit(self) -> list[bytes]:
        """Requests on each queue; each says a number of its own."""
        words = []
        for number in itertools.islice(_numbers, QUEUES * EACH):
            words.append(b"%d" % number)
            queue = number // 2 % QUEUES
            self.tokens[words[-1]] = self.guest.submit(queue, [words[-1]], [16])
        return words

    def answered(self, words: Sequence[bytes]) -> None:
        """Each is completed, with its own answer."""
        for word in words:
            assert self.guest.wait(self.tokens.pop(word)).content == word


@pytest.mark.proves(
    "SET_INFLIGHT_FD",
    "GET_VRING_BASE_SKIP_DRAIN",
    "PROTOCOL_F_GET_VRING_BASE_INFLIGHT",
    "PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN",
    front_end="built-in",
)
@LAYOUTS
def test_what_is_in_flight_runs_at_the_other_end(hosts: list[Host], packed: bool) -> None:
    source, _, target = hosts
    workers = [source.served.wait_worker(index) for index in range(QUEUES)]
    with Numbered(source, packed=packed) as migrant:
        words = migrant.submit()
        # Every second one is done, so that the rest is not what was fetched last.
        done, left = words[::2], words[1::2]
        migrant.answered(done)
        migrant.move(target.served)
        migrant.answered(left)
        later = migrant.submit()
        migrant.answered(later)
    assert source.run(words) == Counter(done)
    assert target.run(words + later) == Counter(left + later)
    # Nobody was waited for, and nobody was killed.
    assert [source.served.wait_worker(index) for index in range(QUEUES)] == workers


@LAYOUTS
def test_forth_and_back_and_forth(hosts: list[Host], packed: bool) -> None:
    """More often than a worker may die over one request."""
    one, two, last = hosts
    with Numbered(one, packed=packed) as migrant:
        words = migrant.submit()
        for turn, to in enumerate((two, one, two, one, last)):
            migrant.move(to.served)
            if turn == 2:
                words += migrant.submit()
        migrant.answered(words)
        assert not any(queue.in_flight for queue in migrant.guest.queues.values())
    assert sum((each.run(words) for each in hosts), Counter()) == Counter(words)


@LAYOUTS
def test_a_guest_that_stays_goes_on_where_it_was(tmp_path: Path, packed: bool) -> None:
    """A migration that fails after its rings were stopped."""
    with host(tmp_path, "here", 1.0) as here:
        with Numbered(here, packed=packed) as migrant:
            words = migrant.submit()
            migrant.move(here.served)
            migrant.answered(words)
        assert here.run(words) == Counter(words)


def test_a_source_whose_workers_die_has_left_the_record(hosts: list[Host]) -> None:
    source, _, target = hosts
    with Numbered(source, packed=False) as migrant:
        words = migrant.submit()
        for queue in range(QUEUES):
            source.served.kill_worker(queue)
        migrant.move(target.served)
        migrant.answered(words)
    assert target.run(words)


def test_without_a_record_that_comes_along_the_source_finishes(tmp_path: Path) -> None:
    with host(tmp_path, "here", 0.3) as here:
        with here.served.guest(queues=1, queue_size=SIZE) as guest:
            tokens = [guest.submit(0, [b"%d" % number], [16]) for number in range(9)]
            # The last is done at once: those before it are in the device's hands.
            assert guest.wait(tokens.pop()).content == b"8"
            assert guest.stop_queue(0, drain=False) == 9
            said = [guest.wait(token).content for token in tokens]
            assert said == [b"%d" % number for number in range(8)]


def test_only_a_device_that_may_is_asked(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    leaves = ProtocolFeature.GET_VRING_BASE_INFLIGHT | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    with serve(Impatient, ledger=ledger) as served, served.guest(start=False) as guest:
        guest.setup()
        assert not guest.front_end.protocol_features & leaves
