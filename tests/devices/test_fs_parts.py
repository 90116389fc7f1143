"""The parts of the file system that outlive a worker: nodes, records, open files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from typing import Any

import pytest

from vuproc import Fd
from vuproc.devices.fs_nodes import ENTRY, Nodes, nodes_file
from vuproc.devices.fs_parked import LANES, MOST_IN_LANE, Parked, lane_files
from vuproc.devices.fs_recent import Recent
from vuproc.devices.fs_records import RECORDS, Records, records_file
from vuproc.spec.fuse import ROOT

pytestmark = pytest.mark.timeout(60)

MOST = 40


class Killed(BaseException):
    """The worker is dead."""


class Mortal:
    """Words whose writer dies before a store."""

    def __init__(self, words: Any, stores: int) -> None:
        self.words = words
        self.left = stores

    def __getitem__(self, index: Any) -> Any:
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        if not self.left:
            raise Killed
        self.left -= 1
        self.words[index] = value

    def release(self) -> None:
        self.words.release()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with nodes_file(MOST) as file:
        made = Nodes(file, MOST)
        yield made
        made.close()


def fill(nodes: Nodes) -> list[int]:
    """A directory with a file in a directory; a few more."""
    folder = nodes.remember((1, 1), ROOT, b"folder")
    below = nodes.remember((1, 2), folder, b"below")
    file = nodes.remember((1, 3), below, b"file")
    return [folder, below, file, *(nodes.remember((2, n), ROOT, b"%d" % n) for n in range(9))]


def known(nodes: Nodes) -> dict[tuple[int, int], list[bytes]]:
    """Whatever is known, by its key, and how it is reached."""
    found = {}
    for index in range(1, MOST + 1):
        at = nodes._entries + index * ENTRY
        with nodes._changing() as stores:
            node = nodes._id(stores, at)
            there = nodes._entry(stores, node)
        if there:
            route = nodes.route(node, ())
            assert route.key not in found
            found[route.key] = route.names
    return found


CHANGES: dict[str, Callable[[Nodes, list[int]], Any]] = {
    "a new one": lambda nodes, ids: nodes.remember((9, 9), ids[1], b"new"),
    "one that is known": lambda nodes, ids: nodes.remember((1, 3), ids[1], b"file"),
    "with another name": lambda nodes, ids: nodes.remember((1, 3), ROOT, b"link"),
    "moved": lambda nodes, ids: nodes.moved((1, 2), ROOT, b"m" * 255),
    "forgotten": lambda nodes, ids: nodes.forget(ids[2], 1),
    "forgotten in the middle": lambda nodes, ids: nodes.forget(ids[5], 1),
    "all is forgotten": lambda nodes, ids: nodes.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_death_at_any_store_leaves_the_state_before_or_after(
    change: Callable[[Nodes, list[int]], Any],
) -> None:
    def after(stores: int | None) -> dict[tuple[int, int], list[bytes]]:
        """What is known once the worker has died after so many stores; None: it lives on."""
        with nodes_file(MOST) as file, closing(Nodes(file, MOST)) as nodes:
            ids = fill(nodes)
            words = nodes._words
            try:
                if stores is not None:
                    nodes._words = Mortal(words, stores)  # type: ignore[assignment]
                change(nodes, ids)
            except Killed:
                pass
            else:
                survived.append(stores)
            finally:
                nodes._words = words
            result = known(nodes)
            # Whoever comes next has a table that works, with room for as many as before.
            for number in range(MOST - len(result) - 1):
                nodes.remember((7, number), ROOT, b"x")
            return result

    survived: list[int | None] = []
    wanted = [after(0), after(None)]
    seen = []
    for stores in range(400):
        seen.append(wanted.index(after(stores)))
        if stores in survived:
            break
    # First the state before, then the one after; and somebody died with each of them.
    assert survived[1:] == [len(seen) - 1]
    if wanted[0] != wanted[1]:
        assert seen == sorted(seen) and set(seen[:-1]) == {0, 1}


def test_a_parent_stays_as_long_as_something_is_below_it(nodes: Nodes) -> None:
    folder, below, file, *_ = fill(nodes)
    nodes.forget(folder, 1)
    nodes.forget(below, 1)
    assert nodes.route(file, ()).names == [b"folder", b"below", b"file"]
    assert nodes.route(file, {below}) == (below, [b"file"], (1, 3))
    nodes.forget(file, 1)
    for node in (folder, below, file):
        with pytest.raises(OSError) as refused:
            nodes.route(node, ())
        assert refused.value.errno == errno.ESTALE
    assert nodes.remember((1, 1), ROOT, b"folder") != folder


def test_ids_are_not_used_again(nodes: Nodes) -> None:
    seen = set()
    for turn in range(3 * MOST):
        node = nodes.remember((5, turn), ROOT, b"x")
        assert node not in seen
        seen.add(node)
        nodes.forget(node, 1)
    nodes.reset()
    assert nodes.remember((5, 0), ROOT, b"x") not in seen


def test_a_loop_of_parents_ends(nodes: Nodes) -> None:
    folder, below, *_ = fill(nodes)
    nodes.moved((1, 1), below, b"folder")
    with pytest.raises(OSError) as refused:
        nodes.route(folder, ())
    assert refused.value.errno == errno.ESTALE


def test_a_record_is_found_by_who_comes_next_and_by_no_other_mount() -> None:
    with records_file(3) as file:
        first = Records(file, 1, 3, session=1)
        for unique in range(2, 2 * RECORDS + 10, 2):
            assert not first.begin(1, unique, before=unique, handle=7).again
        first.close()
        other, same = Records(file, 2, 3, session=1), Records(file, 1, 3, session=2)
        assert not other.begin(1, 20).again and not same.begin(2, 22).again
        other.close()
        same.close()
        second = Records(file, 1, 3, session=1)
        assert not second.begin(1, 2).again  # one of the oldest
        record = second.begin(1, 2 * RECORDS + 8, before=0)
        assert (record.again, record.before, record.handle) == (True, 2 * RECORDS + 8, 7)
        second.forget()
        assert not second.begin(1, 2 * RECORDS + 8).again
        second.close()


class Alone:
    """No other worker is there."""

    def locked(self) -> Any:
        return nullcontext()


def test_files_are_found_and_taken_out_of_the_middle() -> None:
    files = lane_files()
    lanes = [(files[f"to-{n}"], files[f"out-{n}"]) for n in range(LANES)]
    parked = Parked(lanes, Alone())
    node, other = 3, 3 + LANES
    inodes = {}
    for handle in range(MOST_IN_LANE):
        with Fd(os.memfd_create("parked")) as file:
            assert parked.park(node if handle % 2 else other, handle, file)
            inodes[handle] = os.fstat(file.fileno()).st_ino
    with Fd(os.memfd_create("parked")) as file:
        assert not parked.park(node, MOST_IN_LANE, file)
        assert parked.park(node + 1, MOST_IN_LANE, file)
    for handle in range(1, MOST_IN_LANE, 7):
        parked.drop(node if handle % 2 else other, handle)
        del inodes[handle]
    parked.drop(node, 0)  # another's
    parked.close()
    after = Parked(lanes, Alone())
    for handle in range(MOST_IN_LANE):
        found = after.find(node if handle % 2 else other, handle)
        assert (found is not None) == (handle in inodes)
        if found is not None:
            with found:
                assert os.fstat(found.fileno()).st_ino == inodes[handle]
    any_of_it = after.find(other)
    assert any_of_it is not None
    any_of_it.close()
    after.clear()
    assert after.find(other) is None
    after.close()
    for end in files.values():
        end.close()


class Thing:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def test_what_is_used_stays_open() -> None:
    recent: Recent[int, Thing] = Recent(4)
    things = [recent.put(number, Thing()) for number in range(20)]
    assert len(recent) <= 8
    assert [thing.closed for thing in things].count(False) == len(recent)
    assert not any(thing.closed for thing in things[-4:])
    last = things[-1]
    for _ in range(5):
        recent.tick()
        assert recent.get(19) is last and not last.closed
    recent.clear()
    assert last.closed and not len(recent)


def test_using_what_is_open_does_not_have_more_of_it_open() -> None:
    recent: Recent[int, Thing] = Recent(4)
    for number in range(40):
        last = recent.put(number, Thing())
        for other in range(number):
            recent.get(other)
            assert len(recent) <= 8
        assert not last.closed or number > 4
