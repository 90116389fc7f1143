"""Where front-ends come from: a listening socket, a listening VMM to connect to, or an inherited
descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Protocol

from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.unix_path import LOCK_SUFFIX, MAX_ADDRESS, address_of

log = logging.getLogger("vuproc.master")

BACKLOG = 16
"""Front-ends that may wait for the one being served."""
RETRY_FIRST_S = 0.05
"""First pause between two attempts to connect to a listening VMM; it doubles up to `RETRY_MOST_S`.
"""
RETRY_MOST_S = 1.0
AS_IT_IS = (-1, -1)
"""The user and the group of a socket that is given to nobody."""
DRAFT_SUFFIX = ".new"
"""What the path of a socket has in addition until it listens."""
LOCK_ATTEMPTS = 16
"""Times the lock is tried again when its file was removed in between."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ListenError(VuprocError):
    """The socket cannot be had: the path, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Source(Protocol):
    """Gives one connected socket after the other."""

    def open(self) -> None:
        """Begin to take connections: whoever serves them is ready."""

    def fileno(self) -> int | None:
        """The descriptor to poll for a new connection; None if `accept` is to be tried after
        `delay` seconds.
        """

    def delay(self) -> float:
        """Seconds until `accept` should be tried when there is nothing to poll."""

    def accept(self) -> socket.socket | None:
        """The next connection, or None if there is none yet. Raises OSError when out of
        descriptors.
        """

    def exhausted(self) -> bool:
        """There will be no further connection."""

    def close(self) -> None:
        """Close the source and remove what it put into the file system."""


class Reserve:
    """A spare descriptor, given up to turn a front-end away when there is no other for it.

    One that stays in the backlog would be announced again and again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd: Fd | None = _spare()

    def accept(self, listening: socket.socket) -> socket.socket | None:
        """The next connection of a non-blocking socket, or None if there is none to be had."""
        try:
            return listening.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._turn_away(listening, error)
            return None

    def close(self) -> None:
        """Close it; idempotent."""
        if self._fd is not None:
            self._fd.close()
            self._fd = None

    def _turn_away(self, listening: socket.socket, error: OSError) -> None:
        self.close()
        try:
            listening.accept()[0].close()
        except OSError:
            pass
        try:
            self._fd = _spare()
        except OSError:
            pass
        log.error("%s: turned a front-end away: %s", self._name, error.strerror)


class Listener:
    """Listens on `path` once it is opened, replacing a stale socket and refusing a live one.

    The socket is made beside `path`, and gets that name when it listens: what is there accepts.
    A lock file beside the socket decides between two instances: whoever holds it may remove what it
    finds at `path`.
    """

    def __init__(
        self,
        path: Path,
        permissions: int,
        left: tuple[socket.socket, Fd] | None = None,
        owner: tuple[int, int] = AS_IT_IS,
    ) -> None:
        """Make the socket, for the user and the group with the numbers `owner`; or go on with what
        a predecessor left, its socket and its lock, if that is what is at `path`. Raises
        ListenError.
        """
        self._path = path
        place = None if left is None else _place_of(path, *left)
        if left is not None and place is None:
            _give_up(*left)
        if left is not None and place is not None:
            self._place = place
            self._socket, self._lock = left
            _grant(place, permissions, _as_made(place, owner))
        else:
            self._place = draft_of(path)
            self._lock = _lock(path)
            try:
                _remove_stale(path)
                self._socket = _bind(self._place, path, permissions, owner)
            except BaseException:
                self._unlock()
                raise
        self._identity = _identity(self._place)
        self._reserve = Reserve(str(path))

    @property
    def left(self) -> tuple[socket.socket, Fd]:
        """What a successor goes on with; it stays ours."""
        return self._socket, self._lock

    def permit(self, permissions: int, owner: tuple[int, int] = AS_IT_IS) -> None:
        """Change who may connect. Raises OSError."""
        _grant(self._place, permissions, owner, self._identity)

    def open(self) -> None:
        self._socket.listen(BACKLOG)
        if self._place != self._path:
            if _identity(self._path) is not None:
                raise ListenError(str(self._path), "somebody else has made a file here meanwhile")
            os.rename(self._place, self._path)
            self._place = self._path

    def fileno(self) -> int:
        return self._socket.fileno()

    def delay(self) -> float:
        return 0.0

    def accept(self) -> socket.socket | None:
        return self._reserve.accept(self._socket)

    def exhausted(self) -> bool:
        return False

    def close(self) -> None:
        self._socket.close()
        if self._identity is not None and _identity(self._place) == self._identity:
            self._place.unlink()
        self._unlock()
        self._reserve.close()

    def _unlock(self) -> None:
        if not self._lock.closed:
            _lock_path(self._path).unlink(missing_ok=True)
            self._lock.close()


class Connector:
    """Client mode: connects to the VMM that listens on `path`, and again after a disconnect."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pause = 0.0
        self._reason: str | None = None
        """Why the last attempt failed, as logged."""

    def open(self) -> None:
        """Nothing to do: `accept` connects."""

    def fileno(self) -> None:
        return None

    def delay(self) -> float:
        return self._pause

    def accept(self) -> socket.socket | None:
        connection = None
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            # A listener whose backlog is full would make connect(2) wait, for ever if need be.
            connection.setblocking(False)
            connection.connect(str(self._path))
        except OSError as error:
            if connection is not None:
                connection.close()
            why = "its backlog is full" if error.errno == errno.EAGAIN else error.strerror
            if why != self._reason:
                self._reason = why
                log.info("%s: waiting for the VMM to listen (%s)", self._path, why)
            self._pause = min(max(RETRY_FIRST_S, self._pause * 2), RETRY_MOST_S)
            return None
        connection.setblocking(True)
        self._reason = None
        # Not at once after a disconnect: a VMM that accepts and closes must not make us spin.
        self._pause = RETRY_FIRST_S
        return connection

    def exhausted(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to remove: the socket is the VMM's."""


class Inherited:
    """A descriptor from whoever started us (`--fd N`): a listening socket or one connection."""

    def __init__(self, number: int) -> None:
        try:
            self._socket: socket.socket | None = socket.socket(fileno=number)
        except OSError as error:
            raise ListenError(f"--fd {number}", error.strerror or "not a socket") from error
        if self._socket.family != socket.AF_UNIX or self._socket.type != socket.SOCK_STREAM:
            self._socket.detach()
            raise ListenError(f"--fd {number}", "not an AF_UNIX stream socket")
        os.set_inheritable(number, False)
        self._reserve = Reserve(f"descriptor {number}")
        self._listening = bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if self._listening:
            self._socket.setblocking(False)

    def open(self) -> None:
        """Nothing to do: whoever made the socket has done it."""

    def fileno(self) -> int | None:
        return self._socket.fileno() if self._socket is not None and self._listening else None

    def delay(self) -> float:
        return 0.0

    def accept(self) -> socket.socket | None:
        if self._socket is None:
            return None
        if not self._listening:
            connection, self._socket = self._socket, None
            return connection
        return self._reserve.accept(self._socket)

    def exhausted(self) -> bool:
        return self._socket is None

    def close(self) -> None:
        self._reserve.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _spare() -> Fd:
    return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + LOCK_SUFFIX)


def _lock(path: Path) -> Fd:
    """Take the lock beside `path`; the file may be unlinked by its last holder while we open it, so
    look again.
    """
    lock_path = _lock_path(path)
    for _ in range(LOCK_ATTEMPTS):
        try:
            fd = Fd(
                os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            )
        except OSError as error:
            raise ListenError(str(lock_path), error.strerror or "cannot open") from error
        try:
            fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fd.close()
            raise ListenError(str(path), "another vuproc is serving this socket") from None
        status = os.fstat(fd.fileno())
        if _identity(lock_path) == (status.st_dev, status.st_ino):
            return fd
        fd.close()
    raise ListenError(str(lock_path), "the lock file keeps changing")


def _grant(
    path: Path,
    permissions: int,
    owner: tuple[int, int],
    identity: tuple[int, int] | None = None,
) -> None:
    """Let others connect to the socket at `path`: the group first, as nobody in another is to have
    its permissions, and the user last, who then has the file. Raises OSError, also if `identity` is
    given and that is not the file there.
    """
    user, group = owner
    # Not by its name: whoever has the socket may put a link to another file there meanwhile.
    with Fd(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
        status = os.fstat(file.fileno())
        found = status.st_dev, status.st_ino
        if not stat.S_ISSOCK(status.st_mode) or identity not in (None, found):
            raise OSError(errno.ESTALE, "another file is there now", str(path))
        place = f"/proc/self/fd/{file.fileno()}"
        if group != AS_IT_IS[1]:
            _give(place, -1, group, f"group {group}")
        os.chmod(place, permissions)
        if user != AS_IT_IS[0]:
            _give(place, user, -1, f"user {user}")


def _give(place: str, user: int, group: int, whom: str) -> None:
    try:
        os.chown(place, user, group)
    except OSError as error:
        raise OSError(error.errno, f"cannot be given to {whom}: {error.strerror}") from error


def _as_made(path: Path, owner: tuple[int, int]) -> tuple[int, int]:
    """Of a predecessor's socket: what nobody names any more is as if it were made now."""
    user, group = owner
    if user == AS_IT_IS[0]:
        user = os.geteuid()
    inherits = os.stat(path.parent).st_mode & stat.S_ISGID
    if group == AS_IT_IS[1] and not inherits:
        group = os.getegid()
    return user, group


def draft_of(path: Path) -> Path:
    """Where the socket is made that is to be at `path`: beside it, under a name that fits into an
    address if `path` does.
    """
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    if len(os.fsencode(draft)) <= MAX_ADDRESS:
        return draft
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    return path.with_name(f".{digest}{DRAFT_SUFFIX}")


def _bind(place: Path, path: Path, permissions: int, owner: tuple[int, int]) -> socket.socket:
    """A socket at `place` that is to be at `path`. Raises ListenError, and then none is there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(place)
        # Nobody may connect between bind and chmod.
        mask = os.umask(0o177)
        try:
            with address_of(place) as address:
                listener.bind(address)
        finally:
            os.umask(mask)
        try:
            _grant(place, permissions, owner)
        except BaseException:
            place.unlink()
            raise
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ListenError(str(path), error.strerror or str(error)) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _place_of(path: Path, sock: socket.socket, lock: Fd) -> Path | None:
    """Where a predecessor's socket is: at `path`, or still where it was made to get there.

    None if it is gone. As far as can be told: it has such a name, and the lock is held by whoever
    has it.
    """
    draft = draft_of(path)
    try:
        name = sock.getsockname()
    except OSError:
        return None
    if name not in (str(path), str(draft)) and (
        Path(str(name)).name != draft.name or _locked_path(lock) != path
    ):
        return None
    return next((place for place in (draft, path) if _is_socket(place)), None)


def _locked_path(lock: Fd) -> Path:
    """The path whose lock this is."""
    name = os.readlink(f"/proc/self/fd/{lock.fileno()}").removesuffix(" (deleted)")
    return Path(name.removesuffix(LOCK_SUFFIX))


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _give_up(sock: socket.socket, lock: Fd) -> None:
    """Remove the socket of a predecessor, and its lock, from where it was."""
    with sock, lock:
        path = _locked_path(lock)
        place = _place_of(path, sock, lock)
        if place is not None:
            place.unlink()
        _lock_path(path).unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Unlink a socket nobody listens on. Raises `ListenError` for a live one and for any other kind
    of file.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(str(path), "exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            with address_of(path) as address:
                probe.connect(address)
        except ConnectionRefusedError:
            path.unlink()
            log.info("%s: replaced a stale socket", path)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
        except OSError as error:
            # Another user's, or of another kind: somebody's all the same.
            reason = f"a socket is there that cannot be tried: {error.strerror}"
            raise ListenError(str(path), reason) from error
    raise ListenError(str(path), "another program is listening on this socket")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
