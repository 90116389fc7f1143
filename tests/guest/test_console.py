"""The console with Linux's driver in User-Mode Linux: a terminal, a size that changes, ports."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vuproc.spec.virtio import DeviceId
from vuproc.testing import serve
from vuproc.testing.vms import boot_uml

pytestmark = pytest.mark.timeout(150)

BOUND_S = 60.0
DRIVER = ("virtio_console",)

TERMINAL = """
exec 3<>/dev/hvc0
stty raw -echo <&3
echo hello there >&3
read -r answer <&3
say answer $answer
read -r typed <&3
say typed $typed
for number in 1 2 3 4 5 6 7 8 9 10; do
    echo line $number >&3
    read -r answer <&3
    say line$number $answer
done
say before $(stty size <&3)
tries=0
until [ "$(stty size <&3)" = "50 132" ] || [ $tries -ge 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
say after $(stty size <&3)
"""


@contextmanager
def opened(terminal: Path) -> Iterator[int]:
    number = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    try:
        yield number
    finally:
        os.close(number)


def line(terminal: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        data += os.read(terminal, 1)
    return data


@pytest.mark.proves("BACKEND_CONFIG_CHANGE_MSG", front_end="User-Mode Linux 6.1")
def test_a_guest_reads_and_writes_and_sees_the_windows_size(
    tmp_path: Path, shown: Callable[[Iterable[str]], None]
) -> None:
    file, link = tmp_path / "console.yaml", tmp_path / "terminal"
    text = (
        "socket: ./s\nlog_level: debug\n"
        f"device: {{type: console, path: {link}, rows: 50, columns: %d}}\n"
    )
    file.write_text(text % 80)
    with serve(file) as served:
        served.wait_for_line("port 0 is at")
        devices = {served.socket: DeviceId.CONSOLE}
        with opened(link) as host, boot_uml(devices, script=TERMINAL, modules=DRIVER) as guest:
            assert line(host) == b"hello there\n"
            os.write(host, b"HELLO THERE\n")
            guest.wait_for("answer")
            # The driver's buffers are with the next worker, which is the one to write to them.
            served.wait_worker(other_than=served.kill_worker())
            os.write(host, b"after a death\n")
            for number in range(1, 11):
                assert line(host) == b"line %d\n" % number
                if number % 3 == 0:
                    served.kill_worker()
                os.write(host, b"LINE %d\n" % number)
            guest.wait_for("before")
            file.write_text(text % 132)
            served.reload()
            said = guest.finish().values
    assert (said["answer"], said["typed"]) == ("HELLO THERE", "after a death")
    assert [said[f"line{n}"] for n in range(1, 11)] == [f"LINE {n}" for n in range(1, 11)]
    assert (said["before"], said["after"]) == ("50 80", "50 132")
    assert not [line for line in served.lines if "ERROR" in line]
    shown(served.lines)


SENT = 8 << 20
PORTS = f"""
port=/dev/$(basename $(dirname $(grep -l org.example.bulk /sys/class/virtio-ports/*/name)))
say port $port
say there $(head -c {SENT} $port | sha256sum)
head -c {SENT} /dev/urandom > /tmp/back
say back $(sha256sum < /tmp/back)
cat /tmp/back > $port
say size $(stty size < /dev/hvc0)
read -r last < $port
say last $last
"""


def test_a_port_carries_every_byte_once_while_workers_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "bulk.sock"
    options = {
        "backend": "null",
        "columns": 132,
        "rows": 50,
        "ports": [{"name": "org.example.bulk", "path": str(path)}],
    }
    there, came = os.urandom(SENT), hashlib.sha256()
    over = threading.Event()
    with serve({"type": "console", **options}) as served, socket.socket(socket.AF_UNIX) as host:
        host.settimeout(BOUND_S)
        host.connect(str(path))
        kills = 0

        def kill() -> None:
            nonlocal kills
            while not over.wait(0.05):
                served.kill_worker()
                kills += 1

        killer = threading.Thread(target=kill)
        devices = {served.socket: DeviceId.CONSOLE}
        with boot_uml(devices, script=PORTS, modules=DRIVER) as guest:
            guest.wait_for("port")
            killer.start()
            try:
                host.sendall(there)
                left = SENT
                while left:
                    data = host.recv(left)
                    came.update(data)
                    left -= len(data)
            finally:
                over.set()
                killer.join()
            # Not before its `cat` has closed the port: with that Linux throws away what has come.
            guest.wait_for("size")
            host.sendall(b"enough\n")
            said = guest.finish().values
    assert said["there"].split()[0] == hashlib.sha256(there).hexdigest()
    assert said["back"].split()[0] == came.hexdigest()
    assert (said["last"], kills > 1) == ("enough", True)
    # Debian's 6.1 takes it as the specification has it, columns first.
    assert said["size"] == "50 132"
