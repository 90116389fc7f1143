"""Where the other end of a console's port is: a terminal, a socket, a file, or nowhere."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections.abc import Mapping
from typing import Literal

from vuproc import parking, shared
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.parking import Parking

BackendName = Literal["pty", "socket", "file", "stdio", "null"]


END_FILES = ("master", "terminal", "listener", "put", "look", "input", "output")
"""What an end may have, whatever its kind."""


def open_end(backend: BackendName, path: str | None, option: str) -> dict[str, Fd]:
    """The files of an end, which outlive its workers. Raises FileRefused, of `option`."""
    match backend:
        case "pty":
            made = shared.pty(option=option)
            return {"master": made.master, "terminal": made.terminal}
        case "socket":
            assert path is not None
            listener = shared.listening_socket(path, option=option)
            put, look = parking.lot()
            return {"listener": listener, "put": put, "look": look}
        case "file":
            assert path is not None
            return {"output": _appended_to(path, option)}
        case "stdio":
            input_ = _own(0, os.O_RDONLY, option)
            try:
                return {"input": input_, "output": _own(1, os.O_WRONLY, option)}
            except BaseException:
                input_.close()
                raise
        case "null":
            return {}


class End:
    """The end of a port whose files these are, by the names that `open_end` has given them."""

    def __init__(self, files: Mapping[str, Fd]) -> None:
        self._files = files
        self._parking: Parking | None = None
        self.source: Fd | None = None
        """Where its input comes from, or None; it does not wait."""
        self.sink: Fd | None = None
        """Where its output goes, or None; another descriptor than `source`."""
        self.hangup: select.epoll | None = None
        """Readable when the client has ended its sending, read or not; None: there is no client."""
        if "listener" in files:
            self._parking = Parking(files["put"], files["look"])
            self._have(self._parking.parked())
        elif "master" in files:
            self._have(files["master"].dup())
        else:
            self.source, self.sink = files.get("input"), files.get("output")

    @property
    def listener(self) -> Fd | None:
        """What is readable when somebody wants to connect; None: somebody has, or nobody can."""
        return None if self.connected else self._files.get("listener")

    @property
    def connected(self) -> bool:
        """Whether there is somebody at this end, as far as one can tell."""
        return self.source is not None or self.sink is not None or "listener" not in self._files

    @property
    def terminal(self) -> str | None:
        """Where a program finds the terminal, if it is one of our own."""
        return shared.pty_path(self._files["master"]) if "master" in self._files else None

    def accept(self) -> bool:
        """Have whoever wants to connect; False if that one is gone already."""
        assert self._parking is not None
        with socket.socket(fileno=os.dup(self._files["listener"].fileno())) as listener:
            try:
                made, _ = listener.accept()
            except OSError:
                return False
        made.setblocking(False)
        client = Fd(made.detach())
        # Who is killed before this has hung up on the client.
        self._parking.park(client)
        self._have(client)
        return True

    def end_input(self) -> None:
        """There is no more input. A client that ends its sending is gone."""
        if self._parking is not None:
            self.disconnect()
        else:
            self.source = None

    def disconnect(self) -> None:
        """Nobody reads the output any more."""
        if self._parking is None:
            self.sink = None
            return
        self._parking.clear()
        self.close()

    def close(self) -> None:
        """Close what is this worker's own."""
        if self.hangup is not None:
            self.hangup.close()
            self.hangup = None
        if "listener" in self._files or "master" in self._files:
            for file in (self.source, self.sink):
                if file is not None:
                    file.close()
        self.source = self.sink = None

    def _have(self, both: Fd | None) -> None:
        self.source = both
        self.sink = None if both is None else both.dup()
        if both is not None and self._parking is not None:
            self.hangup = select.epoll()
            self.hangup.register(both.fileno(), select.EPOLLRDHUP)


def link(path: str, terminal: str) -> None:
    """Have `path` lead to a terminal. Raises OSError; what is no link of ours is left alone."""
    try:
        if os.readlink(path) == terminal:
            return
        if not os.readlink(path).startswith("/dev/pts/"):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is there, and no link
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
        raise
    fresh = f"{path}.{os.getpid()}"
    os.symlink(terminal, fresh)
    os.rename(fresh, path)


def _appended_to(path: str, option: str) -> Fd:
    try:
        file = Fd(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError as error:
        raise FileRefused(option, f"{path}: {error.strerror}") from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        # Not O_APPEND, which splice(2) does not take: the position is that of all workers.
        os.lseek(file.fileno(), 0, os.SEEK_END)
    return file


def _own(number: int, flags: int, option: str) -> Fd:
    """Standard input or output, opened anew: that it does not wait is nobody else's affair."""
    try:
        kind = os.fstat(number).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISSOCK(kind):
            path = f"/proc/self/fd/{number}"
            return Fd(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
        file = Fd(os.dup(number))
    except OSError as error:
        what = "standard output" if number else "standard input"
        raise FileRefused(option, f"{what}: {error.strerror}") from error
    if stat.S_ISSOCK(kind):
        os.set_blocking(file.fileno(), False)
    return file
