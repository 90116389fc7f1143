"""An S3 server for tests, moto's, in a process of its own, behind a gate that can be shut.

As a program it serves until its input ends, and says its port first.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

BUCKET = "images"
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "a secret of the tests"
BOUND_S = 30.0
_LOOPBACK = "127.0.0.1"


class Gate:
    """What clients connect to. While it is shut nobody is there; while it is `silent`, nothing that
    comes is passed on.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.refuses = False  # whether whoever asks is told that he must not (403)
        self._flows = threading.Event()
        self._flows.set()
        self._listener: socket.socket | None = None
        with socket.socket() as free:
            free.bind((_LOOPBACK, 0))
            self.port = free.getsockname()[1]
        self.open()

    def open(self) -> None:
        self.refuses = False
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, self.port))
        listener.listen(64)
        self._listener = listener
        self._flows.set()
        self._run(self._accept, listener)

    def shut(self) -> None:
        """Hang up on everybody."""
        self._flows.set()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(BOUND_S)
            assert not thread.is_alive()
        self._threads.clear()

    def silence(self) -> None:
        self._flows.clear()

    def _run(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection((_LOOPBACK, self._behind))
            except OSError:
                return
            if self.refuses:
                server.close()
                self._run(self._refuse, client)
                continue
            with self._lock:
                self._open += [client, server]
            self._run(self._pass, client, server)
            self._run(self._pass, server, client)

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


class S3:
    """A server with one bucket. `environment` is what clients find it by."""

    def __init__(self, port: int) -> None:
        import boto3

        self.port = port
        self.gate = Gate(port)
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{_LOOPBACK}:{port}",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://{_LOOPBACK}:{self.gate.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # Whatever proxy this machine goes out by, it is not asked for what is here.
            "NO_PROXY": _LOOPBACK,
        }

    def get(self, key: str) -> bytes:
        """An object, by a plain client, past the gate."""
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def keys(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [each["Key"] for each in found]

    def delete_all(self) -> None:
        keys = [{"Key": key} for key in self.keys()]
        if keys:
            self.client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
        self.client.close()  # its connections; it goes on

    def manifest(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(f"{name}/manifest.json"))
        return found

    def image_or_none(self, name: str) -> bytes | None:
        """None if a piece was replaced and deleted while it was read."""
        try:
            return self.image(name)
        except self.client.exceptions.NoSuchKey:
            return None

    def image(self, name: str) -> bytes:
        """An image in pieces put together as its description says, by no code of ours."""
        manifest = self.manifest(name)
        size, piece = manifest["size"], manifest["piece"]
        base = b"" if manifest["base"] is None else self.get(manifest["base"]["key"])
        parts = []
        for number, place in enumerate(manifest["pieces"]):
            length = min(piece, size - number * piece)
            if place == -1:
                parts.append(bytes(length))
            elif place == -2:
                parts.append(base[number * piece : number * piece + length])
            else:
                parts.append(self.get(f"{name}/{manifest['runs'][place]}/{number:016x}"))
                assert len(parts[-1]) == length
        return b"".join(parts)


@contextmanager
def gated(port: int) -> Iterator[S3]:
    """What a test has of a server that is there."""
    s3 = S3(port)
    try:
        yield s3
    finally:
        s3.gate.shut()
        s3.client.close()


@contextmanager
def running(*, checks_keys: bool = False) -> Iterator[int]:
    """The port of a server. `checks_keys`: signatures are checked, of a user who may do nothing."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    if checks_keys:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port = int(process.stdout.readline())
            if not checks_keys:
                with gated(port) as s3:
                    s3.client.create_bucket(Bucket=BUCKET)
            yield port
        finally:
            process.stdin.close()
            process.wait(BOUND_S)


def main() -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=_LOOPBACK, port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
