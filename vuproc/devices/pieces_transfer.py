"""A raw image becomes one in pieces, and back: whole files, on an operator's command."""

from __future__ import annotations

import contextlib
import itertools
import os
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from vuproc.devices import pieces_manifest
from vuproc.devices.object_store import (
    SCHEMES,
    WRITABLE,
    Exchanged,
    ObjectAbsent,
    ObjectStore,
    ObjectUnavailable,
    StoreAway,
    key_of,
    problem_of,
)
from vuproc.devices.pieces_manifest import (
    BASE,
    PIECE,
    ZEROS,
    Base,
    count_of,
    is_zeros,
    new_run,
    piece_name,
)
from vuproc.devices.pieces_map import PiecesMap, new_map
from vuproc.devices.pieces_reader import PiecesReader
from vuproc.fd import Fd
from vuproc.spec.blk import SECTOR_SIZE

AT_A_TIME = 4
"""Pieces, each of which is in memory."""


class TransferFailed(Exception):
    """Nothing has come of it, or it is not known whether; the text says why."""


class _Uncertain(ObjectUnavailable):
    """A manifest may be there, or arrive yet."""


def push(source: str, url: str, piece: int = PIECE) -> str:
    """Have an image in pieces at `url` with the content of a raw one, which is a file, or an object
    of the same bucket: that is only named. What was done, in words. Raises TransferFailed, OSError.
    """
    _check(url, WRITABLE)
    if not pieces_manifest.is_folder(url):
        raise TransferFailed(f"{url}: the URL of an image in pieces ends in a slash")
    if not pieces_manifest.is_piece_size(piece):
        raise TransferFailed(f"pieces of {piece} bytes: it is a power of two from 64KiB to 64MiB")
    try:
        store = ObjectStore(url)
        if urlsplit(source).scheme in SCHEMES:
            return _push_object(store, source, url, piece)
        return _push_file(store, source, url, piece)
    except Exchanged as error:
        raise TransferFailed(f"{url}: there is an image already") from error
    except ObjectUnavailable as error:
        raise TransferFailed(f"{url}: {error}") from error


def pull(url: str, path: str) -> str:
    """Have a raw image in a new file, of one in pieces or a raw object. What was done, in words.
    Raises TransferFailed, OSError.
    """
    _check(url, SCHEMES)
    try:
        store = ObjectStore(url)
        if pieces_manifest.is_folder(url):
            name = key_of(url) + pieces_manifest.NAME
            manifest = pieces_manifest.decoded(store.whole(name, pieces_manifest.MOST_BYTES)[0])
            with new_map(manifest) as memory:
                reader = PiecesReader(url, PiecesMap(memory))
            try:
                _pull(path, manifest.size, manifest.piece, reader.read)
            finally:
                reader.close()
            return f"{path}: {manifest.size} bytes, as of run {manifest.run}"
        found = store.describe(key_of(url))
        _pull(path, found.size, PIECE, lambda at, n: store.part(key_of(url), at, n, found.tag))
        return f"{path}: {found.size} bytes"
    except ObjectUnavailable as error:
        raise TransferFailed(f"{url}: {error}") from error


def _check(url: str, schemes: tuple[str, ...]) -> None:
    problem = problem_of(url)
    if problem is None and urlsplit(url).scheme not in schemes:
        problem = f"it is one of {', '.join(f'{scheme}://' for scheme in schemes)}"
    if problem is not None:
        raise TransferFailed(f"{url}: {problem}")


def _push_object(store: ObjectStore, source: str, url: str, piece: int) -> str:
    problem = problem_of(source)
    if problem is None and urlsplit(source)[:2] != urlsplit(url)[:2]:
        problem = f"it is not in the bucket of {url}"
    if problem is None and pieces_manifest.is_folder(source):
        problem = "it is an image in pieces itself"
    if problem is not None:
        raise TransferFailed(f"{source}: {problem}")
    found = store.describe(key_of(source))
    _check_size(source, found.size, piece)
    pieces = array("Q", [BASE]) * count_of(found.size, piece)
    base = Base(key_of(source), found.size, found.tag)
    _create(store, url, found.size, piece, new_run(), pieces, base)
    return f"{url}: {found.size} bytes, all of them those of {source}"


def _push_file(store: ObjectStore, source: str, url: str, piece: int) -> str:
    run = new_run()
    folder = key_of(url)
    with Fd(os.open(source, os.O_RDONLY | os.O_CLOEXEC)) as file:
        size = os.lseek(file.fileno(), 0, os.SEEK_END)
        _check_size(source, size, piece)
        pieces = array("Q", [ZEROS]) * count_of(size, piece)

        def put(number: int) -> None:
            data = os.pread(file.fileno(), min(piece, size - number * piece), number * piece)
            if len(data) < min(piece, size - number * piece):
                raise TransferFailed(f"{source} has become shorter")
            if not is_zeros(data):
                store.put(folder + piece_name(run, number), data)
                pieces[number] = run

        run_folder = f"{folder}{pieces_manifest.hexadecimal(run)}"
        try:
            _some_at_a_time(_pieces_with_data(file, size, piece), put)
        except BaseException:
            _delete_below(store, run_folder)
            raise
    try:
        _create(store, url, size, piece, run, pieces, None)
    except _Uncertain as error:
        # There may be an image of them by now, or later: a request may still be on its way.
        raise TransferFailed(f"{url}: {error}; what was put stays, below {run_folder}/") from error
    except ObjectUnavailable:
        _delete_below(store, run_folder)
        raise
    return f"{url}: {size} bytes, {pieces.count(run)} of {len(pieces)} pieces are not zeros"


def _create(
    store: ObjectStore,
    url: str,
    size: int,
    piece: int,
    run: int,
    pieces: array[int],
    base: Base | None,
) -> None:
    """Raises Exchanged if there is another image, _Uncertain if there may be this one, or
    ObjectUnavailable if there is not.
    """
    data = pieces_manifest.encoded(size=size, piece=piece, run=run, base=base, by_piece=pieces)
    name = key_of(url) + pieces_manifest.NAME
    try:
        store.exchange(name, data, None)
    except ObjectUnavailable as error:
        # It may be ours, of an attempt whose answer was lost, whatever became of those after it.
        try:
            there = store.whole(name, pieces_manifest.MOST_BYTES)[0]
        except ObjectUnavailable as second:
            if isinstance(second, ObjectAbsent) and not isinstance(error, StoreAway):
                raise error from second
            raise _Uncertain(f"it is not known whether the image is there: {error}") from second
        if there != data:
            raise Exchanged(str(error)) from error


def _delete_below(store: ObjectStore, folder: str) -> None:
    with contextlib.suppress(ObjectUnavailable):
        for names in store.below(folder):
            store.delete(names)


def _check_size(source: str, size: int, piece: int) -> None:
    if size == 0 or size % SECTOR_SIZE or size > pieces_manifest.MOST_SIZE:
        raise TransferFailed(f"{source}: {size} bytes are no disk")
    if count_of(size, piece) > pieces_manifest.MOST_PIECES:
        raise TransferFailed(f"{source}: {size} bytes want larger pieces (--piece-size)")


def _pieces_with_data(file: Fd, size: int, piece: int) -> Iterator[int]:
    """Those that are not a hole as a whole."""
    number = 0
    while number * piece < size:
        try:
            data = os.lseek(file.fileno(), number * piece, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole follows
        number = max(number, data // piece)
        yield number
        number += 1


def _pull(path: str, size: int, piece: int, read: Callable[[int, int], bytes]) -> None:
    with Fd(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)) as file:
        try:
            os.ftruncate(file.fileno(), size)

            def get(number: int) -> None:
                at = number * piece
                data = read(at, min(piece, size - at))
                left = memoryview(b"" if is_zeros(data) else data)
                while left:
                    written = os.pwrite(file.fileno(), left, at)
                    at += written
                    left = left[written:]

            _some_at_a_time(iter(range(count_of(size, piece))), get)
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(path)
            raise


def _some_at_a_time(numbers: Iterator[int], do: Callable[[int], None]) -> None:
    """Raises what one of them does, once those that were begun are done."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        while some := list(itertools.islice(numbers, AT_A_TIME)):
            list(pool.map(do, some))
