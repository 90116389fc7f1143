"""What clients of a store connect to: it can be shut, fall silent, or say no."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

BOUND_S = 30.0
LOOPBACK = "127.0.0.1"


class Gate:
    """What clients connect to. While it is shut nobody is there; while it is `silent`, nothing that
    comes is passed on.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._refuses = False  # whether whoever asks is told that he must not (403)
        self._flows = threading.Event()
        self._flows.set()
        self._listener: socket.socket | None = None
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            self.port = free.getsockname()[1]
        self.open()

    def open(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, self.port))
        listener.listen(64)
        self._listener = listener
        self._flows.set()
        self._run(self._accept, listener)

    def shut(self) -> None:
        """Hang up on everybody."""
        self._flows.set()
        self._refuses = False
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self._hang_up()
        for thread in self._threads:
            thread.join(BOUND_S)
            assert not thread.is_alive()
        self._threads.clear()

    def silence(self) -> None:
        self._flows.clear()

    def refuse(self) -> None:
        """Say no to all that is asked from now on, on connections of before, too."""
        self._refuses = True
        self._hang_up()

    def permit(self) -> None:
        self._refuses = False

    def _hang_up(self) -> None:
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _run(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection((LOOPBACK, self._behind))
            except OSError:
                return
            with self._lock:
                there, refuses = self._listener is listener, self._refuses
                if there and not refuses:
                    self._open += [client, server]
            if there and not refuses:
                self._run(self._pass, client, server)
                self._run(self._pass, server, client)
                continue
            server.close()
            if there:
                self._run(self._refuse, client)
            else:
                client.close()

    def _refuse(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(BOUND_S)
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait(BOUND_S)
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            if source in self._open and target in self._open:
                self._open.remove(source)
                self._open.remove(target)
                return
        source.close()
        target.close()
