"""What `vuproc hint` prints, given to the clients themselves; and a VMM that is another user."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuproc.cli.hint import HintError, hint
from vuproc.device_file.check import load
from vuproc.errors import ConfigErrors
from vuproc.ops.admin import Request, ask
from vuproc.testing.serve import serve
from vuproc.testing.vms import ClientMissing, clients

BOUND_S = 30.0
NOBODY = pwd.getpwnam("nobody")
ENTROPY = """\
from vuproc import Device


class Device4(Device):
    device_id = 4
    def handle(self, request): request.write(bytes(request.writable))


class Device26(Device4):
    device_id = 26
    def config_space(self): return bytes(44)


class Device1(Device4):
    device_id = 1


class Device36(Device4):
    device_id = 36
"""
HALTED = ("-accel", "tcg", "-display", "none", "-S", "-monitor", "stdio")
BLK = "type: blk, ram: 1MiB, queues: 2"


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that other users can reach."""
    with tempfile.TemporaryDirectory(prefix="vuproc-") as name:
        os.chmod(name, 0o711)
        Path(name, "author.py").write_text(ENTROPY)
        yield Path(name)


def write(folder: Path, device: str, **socket_keys: object) -> Path:
    keys = "".join(f", {key}: {value}" for key, value in socket_keys.items())
    path = folder / "device.yaml"
    path.write_text(f"socket: {{path: ./device.sock{keys}}}\ndevice: {{{device}}}\n")
    return path


@pytest.mark.parametrize("client", ["qemu", "qemu-microvm"])
@pytest.mark.parametrize("device", [BLK, "type: 'author.py:Device4'"], ids=["blk", "rng"])
def test_c5_qemu_takes_its_flags(folder: Path, client: str, device: str) -> None:
    try:
        program = clients.qemu()
    except ClientMissing as missing:
        pytest.skip(str(missing))
    file = write(folder, device)
    text = hint(client, load(file), "64M")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    words = shlex.split(" ".join(line.removesuffix("\\") for line in lines))
    with serve(file) as served:
        done = subprocess.run(
            [
                program,
                *words[1:],
                *["-accel", "tcg", "-display", "none", "-S", "-monitor", "stdio"],
            ],
            input="quit\n",
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "warning:" not in line] == []
        served.wait_for_line("front-end connected", BOUND_S)


@pytest.mark.parametrize("mode", ["server", "client"])
@pytest.mark.parametrize("number", [2, 1, 4, 26, 36])
def test_c5_libvirt_takes_its_xml(folder: Path, number: int, mode: str) -> None:
    try:
        schema = str(clients.libvirt_schema())
        command = [str(clients.xmllint()), "--noout", "--relaxng", schema, "-"]
    except ClientMissing as missing:
        pytest.skip(str(missing))
    device = BLK if number == 2 else f"type: 'author.py:Device{number}', queues: 2"
    file = load(write(folder, device, mode=mode))
    if number == 2 and mode == "client":
        with pytest.raises(HintError):
            hint("libvirt", file)
        return
    before, mark, after = hint("libvirt", file).partition("<!-- in <devices>: -->")
    devices = f"<devices>{after}</devices>" if mark else ""
    domain = (
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<name>x</name><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        f"{before}{devices}</domain>"
    )
    done = subprocess.run(
        command, input=domain, capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.returncode == 0, done.stderr


def connects_as_nobody(path: Path) -> bool:
    """In a process of its own, as another user need not be able to run Python."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setgroups([])
            os.setgid(NOBODY.pw_gid)
            os.setuid(NOBODY.pw_uid)
            with socket.socket(socket.AF_UNIX) as vmm:
                vmm.settimeout(BOUND_S)
                vmm.connect(str(path))
            code = 0
        except PermissionError:
            code = 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 1)
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket to another user")
def test_c5_a_vmm_of_another_user_may_connect_if_the_file_says_so(folder: Path) -> None:
    file = write(folder, BLK)
    with serve(file) as served:
        assert not connects_as_nobody(served.socket)
        for keys, line in (
            ({"owner": "nobody"}, "socket.owner: nothing becomes nobody: applied"),
            ({"group": NOBODY.pw_gid, "permissions": "0660"}, "socket.permissions"),
            ({"permissions": "0666"}, "socket.group"),
        ):
            write(folder, BLK, **keys)
            lines = ask(served.socket, Request("reload"), BOUND_S)["lines"]
            assert any(line in said for said in lines)
            assert connects_as_nobody(served.socket)
        write(folder, BLK)
        ask(served.socket, Request("reload"), BOUND_S)
        assert not connects_as_nobody(served.socket)
        there = os.stat(served.socket)
        assert (there.st_uid, there.st_gid) == (os.geteuid(), os.getegid())
    with serve(write(folder, BLK, owner="nobody", group=NOBODY.pw_gid)) as served:
        there = os.stat(served.socket)
        assert (there.st_uid, there.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
        assert stat.S_IMODE(there.st_mode) == 0o600
        assert connects_as_nobody(served.socket)


def errors(file: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(file)
    return [str(error).rpartition(".yaml:")[2] for error in caught.value.errors]


def test_c5_an_owner_that_is_not_there_is_an_error_with_its_place(folder: Path) -> None:
    assert errors(write(folder, BLK, owner="no-such-user", group="no-such-group")) == [
        "1:38: owner: there is no user no-such-user here",
        "1:59: group: there is no group no-such-group here",
    ]
    assert errors(write(folder, BLK, mode="client", owner="nobody")) == [
        "1:52: owner: in client mode the VMM makes the socket"
    ]


def test_c5_an_owner_that_only_root_can_choose_is_an_error_for_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vuproc.device_file.owner._may_chown", lambda: False)
    mine, ours = os.geteuid() + 1, max([os.getegid(), *os.getgroups()]) + 1
    found = errors(write(folder, BLK, owner=mine, group=ours))
    assert [error.partition(": ")[2].partition(" (CAP")[0] for error in found] == [
        "owner: root alone can give the socket to another user",
        "group: root alone can give the socket to a group without being in it",
    ]
    assert load(write(folder, BLK, owner=os.geteuid(), group=os.getegid())).socket.owner is not None


def test_c5_a_socket_of_a_predecessor_is_given_as_well(tmp_path: Path) -> None:
    from vuproc.fd import Fd
    from vuproc.listener import Listener

    path = tmp_path / "s"
    owner = os.geteuid(), os.getegid()
    first = Listener(path, 0o600, owner=owner)
    first.open()
    kept, lock = first.left
    left = socket.socket(fileno=os.dup(kept.fileno())), Fd(os.dup(lock.fileno()))
    second = Listener(path, 0o640, left, owner)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    second.close()
    first.close()
