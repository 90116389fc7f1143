"""The nodes that the guest knows, in memory that all workers of a file system share.

A node id is made of the entry's index and of its serial number, which rises each time that the
entry is taken: an id that was forgotten is never that of another node. An entry has the node's key
(device and inode number, as a rule), where it was seen last (parent and name), and how often the
guest was given it, plus one for each node below it. Entries are found by their key, through a table
of buckets.

A worker may be killed between any two stores: all changes are those of `LoggedWords`, of which one
store decides. What is written without that is an entry that nothing leads to yet.

Counts err on one side: a request that runs again counts again, and a FORGET that a dead worker had
begun is not run again. So a node may stay known for too long, until the guest unmounts, and is
never gone too early.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Container
from typing import NamedTuple, cast

from vuproc import shared
from vuproc.devices.fs_native import NativeFs
from vuproc.devices.fs_words import LOG_WORDS, WORD_BYTES, LoggedWords, Stores
from vuproc.fd import Fd
from vuproc.spec.fuse import NAME_MAX, ROOT

INDEX_BITS = 24
MOST_NODES = (1 << INDEX_BITS) - 1
MOST_STEPS = 4096
"""From a node up to the root: a path of more components is none that Linux would take."""

# Words of the file: the log, what is true of all nodes, the buckets, the entries.
SESSION = LOG_WORDS
HIGH, FREE, HANDLES = SESSION + 1, SESSION + 2, SESSION + 3
"""The session's number; entries that it has used; the first of those that are free again; handles
that were given away."""
BUCKETS = 256

# Words of an entry. REFERENCES is 0, or STAMP is not that of the session: nobody has it.
KEY, KEY2, PARENT, STAMP, SERIAL, REFERENCES, NEXT, NAME = range(8)
NAME_WORDS = (NAME_MAX + 1) // WORD_BYTES
ENTRY = NAME + NAME_WORDS

_NAME = struct.Struct(f"={NAME_WORDS}Q")
_SPREAD = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class Route(NamedTuple):
    """How a node is reached: from `start`, which is known, down by `names`; what is found there is
    the node if it has the same key.
    """

    start: int
    names: list[bytes]
    key: tuple[int, int]


def nodes_file(nodes: int) -> Fd:
    """Memory for so many nodes, none of which is known; it takes what is used."""
    fields = [("words", ctypes.c_uint64 * _words(nodes))]
    kind = type("fs_nodes", (ctypes.Structure,), {"_fields_": fields})
    return shared.struct_file(cast("type[ctypes.Structure]", kind))


def _buckets(nodes: int) -> int:
    return 1 << max(4, (nodes - 1).bit_length())


def _words(nodes: int) -> int:
    return BUCKETS + _buckets(nodes) + (nodes + 1) * ENTRY


class Nodes(LoggedWords):
    """The table in a file of `nodes_file`, of so many nodes."""

    def __init__(self, file: Fd, nodes: int) -> None:
        super().__init__(file, _words(nodes))
        self._most = nodes
        self._mask = _buckets(nodes) - 1
        self._entries = BUCKETS + self._mask + 1

    @property
    def session(self) -> int:
        """Another number each time that the guest mounts."""
        return int(self._words[SESSION]) + 1

    def lead(self, served: NativeFs, session: int) -> None:
        """Have native code serve the files of this session, until there is another."""
        served.follow(self._words[SESSION : SESSION + 1], session - 1)

    def reset(self) -> None:
        """The guest begins anew: no node is known but the root."""
        with self._changing() as stores:
            stores[SESSION] += 1
            stores[HIGH] = stores[FREE] = 0

    def new_handle(self) -> int:
        """A number that no open file has."""
        with self._changing() as stores:
            stores[HANDLES] += 1
            return stores[HANDLES]

    def remember(self, key: tuple[int, int], parent: int, name: bytes) -> int:
        """The guest is given the node with this key, which was seen here; its id. OSError ENFILE
        if there are too many.
        """
        left = 0
        with self._changing() as stores:
            at = self._find(stores, key)
            if not at:
                at = self._insert(stores, key, parent, name)
            elif (stores[at + PARENT], self._name(at)) != (parent, name):
                left = self._place(stores, at, parent, name)
            stores[at + REFERENCES] += 1
            node = self._id(stores, at)
        if left:
            self.forget(left, 1)
        return node

    def id_of(self, key: tuple[int, int]) -> int:
        """The id of the node with this key; 0: the guest does not have it."""
        with self._changing() as stores:
            at = self._find(stores, key)
            return self._id(stores, at) if at else 0

    def forget(self, node: int, count: int) -> None:
        """The guest gives a node back that it was given `count` times; nothing happens if it does
        not have it.
        """
        while node and count:
            with self._changing() as stores:
                at = self._entry(stores, node)
                if not at:
                    return
                stores[at + REFERENCES] -= min(count, stores[at + REFERENCES])
                if stores[at + REFERENCES]:
                    return
                node = self._remove(stores, at)
            count = 1  # the parent has one below it less

    def moved(self, key: tuple[int, int], parent: int, name: bytes) -> None:
        """What has this key is here now; nothing happens if the guest does not know it."""
        left = 0
        with self._changing() as stores:
            at = self._find(stores, key)
            if at:
                left = self._place(stores, at, parent, name)
        if left:
            self.forget(left, 1)

    def route(self, node: int, known: Container[int]) -> Route:
        """The way to a node from the root, or from one above it that is `known`. OSError ESTALE if
        there is none.
        """
        names: list[bytes] = []
        key = (0, 0)
        with self._changing() as stores:
            while node != ROOT and (not names or node not in known):
                at = self._entry(stores, node)
                if not at or len(names) == MOST_STEPS:
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                if not names:
                    key = stores[at + KEY], stores[at + KEY2]
                names.append(self._name(at))
                node = stores[at + PARENT]
        return Route(node, names[::-1], key)

    # Entries: `at` is the place of one, 0 is none.

    def _entry(self, stores: Stores, node: int) -> int:
        """The one of a node that the guest has; 0: it has none with this id."""
        index = node & MOST_NODES
        if not 0 < index <= self._most:
            return 0
        at = self._entries + index * ENTRY
        if (stores[at + STAMP], stores[at + SERIAL]) != (self.session, node >> INDEX_BITS):
            return 0
        return at if stores[at + REFERENCES] else 0

    def _id(self, stores: Stores, at: int) -> int:
        return stores[at + SERIAL] << INDEX_BITS | (at - self._entries) // ENTRY

    def _name(self, at: int) -> bytes:
        """What it is called, before this change."""
        return self._words[at + NAME : at + ENTRY].tobytes().rstrip(b"\0")

    def _insert(self, stores: Stores, key: tuple[int, int], parent: int, name: bytes) -> int:
        index = stores[FREE]
        if index:
            at = self._entries + index * ENTRY
            stores[FREE] = stores[at + NEXT]
        else:
            index = stores[HIGH] + 1
            if index > self._most:
                raise OSError(errno.ENFILE, "the guest knows too many nodes")
            stores[HIGH] = index
            at = self._entries + index * ENTRY
        # Nothing leads here before the change is made, so these need not be written down.
        for word, value in enumerate(_NAME.unpack(name.ljust(_NAME.size, b"\0")), at + NAME):
            self._words[word] = value
        self._words[at + KEY], self._words[at + KEY2] = key
        self._words[at + PARENT] = parent
        stores[at + SERIAL] = stores[at + SERIAL] + 1 & (1 << 64 - INDEX_BITS) - 1 or 1
        stores[at + STAMP] = self.session
        stores[at + REFERENCES] = 0
        self._link(stores, at, key)
        self._refer(stores, parent)
        return at

    def _place(self, stores: Stores, at: int, parent: int, name: bytes) -> int:
        """Say where an entry is found from now on; the parent that it has left, if any."""
        for word, value in enumerate(_NAME.unpack(name.ljust(_NAME.size, b"\0")), at + NAME):
            stores[word] = value
        before = stores[at + PARENT]
        if before == parent:
            return 0
        stores[at + PARENT] = parent
        self._refer(stores, parent)
        return before

    def _refer(self, stores: Stores, parent: int) -> None:
        above = self._entry(stores, parent)
        if above:
            stores[above + REFERENCES] += 1

    def _remove(self, stores: Stores, at: int) -> int:
        """Free an entry; the parent that it leaves."""
        self._unlink(stores, at)
        stores[at + STAMP] = 0
        stores[at + NEXT] = stores[FREE]
        stores[FREE] = (at - self._entries) // ENTRY
        return stores[at + PARENT]

    # Buckets: each has the session and the first entry of its list.

    def _bucket(self, key: tuple[int, int]) -> int:
        return BUCKETS + ((((key[1] + key[0]) * _SPREAD & _WORD) >> 32) & self._mask)

    def _first(self, stores: Stores, bucket: int) -> int:
        word = stores[bucket]
        return word & MOST_NODES if word >> 32 == self.session & 0xFFFFFFFF else 0

    def _find(self, stores: Stores, key: tuple[int, int]) -> int:
        index = self._first(stores, self._bucket(key))
        while index:
            at = self._entries + index * ENTRY
            if (stores[at + KEY], stores[at + KEY2]) == key:
                return at
            index = stores[at + NEXT]
        return 0

    def _link(self, stores: Stores, at: int, key: tuple[int, int]) -> None:
        bucket = self._bucket(key)
        stores[at + NEXT] = self._first(stores, bucket)
        index = (at - self._entries) // ENTRY
        stores[bucket] = (self.session & 0xFFFFFFFF) << 32 | index

    def _unlink(self, stores: Stores, at: int) -> None:
        bucket = self._bucket((stores[at + KEY], stores[at + KEY2]))
        wanted = (at - self._entries) // ENTRY
        index, before = self._first(stores, bucket), 0
        while index and index != wanted:
            before = self._entries + index * ENTRY
            index = stores[before + NEXT]
        if not before:
            stores[bucket] = (self.session & 0xFFFFFFFF) << 32 | stores[at + NEXT]
        else:
            stores[before + NEXT] = stores[at + NEXT]
