"""An NBD server for tests: a disk in memory, a list of what came, and misbehaviour on demand."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vuproc.spec import nbd
from vuproc.spec.nbd import Command, ExportFlag, Info, Option, Reply

ALL = (
    ExportFlag.HAS_FLAGS
    | ExportFlag.SEND_FLUSH
    | ExportFlag.SEND_FUA
    | ExportFlag.SEND_TRIM
    | ExportFlag.SEND_WRITE_ZEROES
    | ExportFlag.CAN_MULTI_CONN
)
EXPORT = "disk"
BOUND_S = 30.0


@dataclass(frozen=True, slots=True)
class Came:
    """A command, and which connection it came by, from 1 on."""

    connection: int
    kind: Command
    flags: int
    offset: int
    length: int


Waiting = list[tuple[Came, int, bytes]]
"""Commands with their cookies and what they write."""


class Server:
    """Listens at `path`. The public attributes may be changed at any time."""

    def __init__(self, path: Path, size: int, flags: ExportFlag = ALL) -> None:
        self.path = path
        self.disk = bytearray(size)
        self.flags = flags
        self.block_sizes: tuple[int, int, int] | None = None
        self.greeting = nbd.GREETING.pack(nbd.INIT, nbd.OPTION_MAGIC, nbd.FIXED_NEWSTYLE)
        self.instead: bytes | None = None
        """What is said in answer to the option, instead of what is right."""
        self.errors: dict[Command, int] = {}
        self.reply: Callable[[bytes], bytes] = bytes
        """What is made of each reply."""
        self.hang_up_after: int | None = None
        """Commands of a connection after which it is closed, without an answer to the last."""
        self.backwards = 1
        """So many commands are waited for, and then done last to first."""
        self.delay_s = 0.0
        """Seconds that each command takes."""
        self._does = True
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[socket.socket, Waiting]] = {}
        """By connection, the commands that are not done yet."""
        self.came: list[Came] = []
        self.done: list[Came] = []
        self.connections = 0
        self._news = threading.Condition()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{EXPORT}?socket={self.path}"

    def start(self) -> None:
        """Listen; after a `stop` again."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        self._run(self._accept, self._listener)

    def stop(self) -> None:
        """Hang up on everybody, and be away."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for connected in list(self._open):
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(BOUND_S)
            assert not thread.is_alive()
        self._threads.clear()

    def pause(self) -> None:
        """Do nothing that comes from now on, until `resume`, or the end of its connection."""
        with self._lock:
            self._does = False

    def resume(self) -> None:
        """Do what has come, and what comes."""
        with self._lock:
            self._does = True
            for connected, waiting in self._waiting.values():
                self._do_all(connected, waiting)

    def wait(self, holds: Callable[[], bool]) -> None:
        """Until something is so. It is looked at after each command and connection."""
        with self._news:
            assert self._news.wait_for(holds, BOUND_S), (self.came, self.done)

    def _run(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            self._open.append(connected)
            self._run(self._serve, connected)

    def _serve(self, connected: socket.socket) -> None:
        with connected, suppress(OSError, EOFError):
            if self._handshake(connected):
                with self._news:
                    self.connections += 1
                    number = self.connections
                    self._news.notify_all()
                self._commands(connected, number)
        self._open.remove(connected)

    def _handshake(self, connected: socket.socket) -> bool:
        connected.sendall(self.greeting)
        _read(connected, nbd.CLIENT_FLAGS.size)
        magic, option, length = nbd.OPTION.unpack(_read(connected, nbd.OPTION.size))
        assert (magic, option) == (nbd.OPTION_MAGIC, Option.GO)
        asked = _read(connected, length)
        if self.instead is not None:
            connected.sendall(self.instead)
            return False
        name_end = nbd.NAME_LENGTH.size + nbd.NAME_LENGTH.unpack_from(asked)[0]
        if asked[nbd.NAME_LENGTH.size : name_end] != EXPORT.encode():
            connected.sendall(option_reply(nbd.OptionError.UNKNOWN, b"none of that name"))
            return False
        told = nbd.INFO_KIND.pack(Info.EXPORT) + nbd.INFO_EXPORT.pack(len(self.disk), self.flags)
        connected.sendall(option_reply(Reply.INFO, told))
        if self.block_sizes is not None:
            sizes = nbd.INFO_BLOCK_SIZE.pack(*self.block_sizes)
            connected.sendall(option_reply(Reply.INFO, nbd.INFO_KIND.pack(Info.BLOCK_SIZE) + sizes))
        connected.sendall(option_reply(Reply.ACK))
        return True

    def _commands(self, connected: socket.socket, number: int) -> None:
        waiting: Waiting = []
        count = 0
        with self._lock:
            self._waiting[number] = connected, waiting
        try:
            while True:
                header = _read(connected, nbd.COMMAND.size)
                magic, flags, kind, cookie, offset, length = nbd.COMMAND.unpack(header)
                assert magic == nbd.COMMAND_MAGIC
                came = Came(number, Command(kind), flags, offset, length)
                if came.kind is Command.DISC:
                    return
                data = _read(connected, length) if came.kind is Command.WRITE else b""
                with self._news:
                    self.came.append(came)
                    self._news.notify_all()
                count += 1
                if count == self.hang_up_after:
                    return
                with self._lock:
                    waiting.append((came, cookie, data))
                    if self._does and len(waiting) >= self.backwards:
                        self._do_all(connected, waiting)
        except EOFError:
            # As nbdkit does it: what has come is done, and then the connection ends.
            with self._lock:
                self._do_all(connected, waiting)
        finally:
            with self._lock:
                del self._waiting[number]

    def _do_all(self, connected: socket.socket, waiting: Waiting) -> None:
        for came, cookie, data in reversed(waiting):
            error, answer = self._do(came, data)
            reply = nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie)
            with suppress(OSError):
                connected.sendall(self.reply(reply + answer))
        waiting.clear()

    def _do(self, came: Came, data: bytes) -> tuple[int, bytes]:
        time.sleep(self.delay_s)
        error, answer = self.errors.get(came.kind, 0), b""
        end = came.offset + came.length
        if end > len(self.disk):
            error = errno.EINVAL
        if not error:
            if came.kind is Command.READ:
                answer = bytes(self.disk[came.offset : end])
            elif came.kind is Command.WRITE:
                self.disk[came.offset : end] = data
            elif came.kind in (Command.TRIM, Command.WRITE_ZEROES):
                self.disk[came.offset : end] = bytes(came.length)
        with self._news:
            self.done.append(came)
            self._news.notify_all()
        return error, answer


def option_reply(kind: int, data: bytes = b"") -> bytes:
    return nbd.OPTION_REPLY.pack(nbd.REPLY_MAGIC, Option.GO, kind, len(data)) + data


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.resume()
        server.stop()
        server.path.unlink(missing_ok=True)


def _read(connected: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connected.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return data
