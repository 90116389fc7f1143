"""What `check` says is good can be served; what cannot is refused with its line and column."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vuproc.device_file.check import load
from vuproc.device_file.model import MAX_STALL_TIMEOUT_S
from vuproc.devices.blk_image import Image
from vuproc.errors import ConfigErrors, FileRefused
from vuproc.ops.admin import Request, ask
from vuproc.testing.serve import serve

NOBODY = 65534
BOUND_S = 30.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may enter, with a short path."""
    with tempfile.TemporaryDirectory(prefix="b6-") as name:
        os.chmod(name, 0o755)
        Path(name, "disk.img").write_bytes(bytes(4096))
        yield Path(name)


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def check(folder: Path, text: str, **options: Any) -> list[str]:
    """The errors of a device file, as they are printed."""
    file = folder / "disk.yaml"
    file.write_text(textwrap.dedent(text))
    os.chmod(file, 0o644)
    return look(file, **options)


def look(file: Path, **options: Any) -> list[str]:
    try:
        load(file, **options)
    except ConfigErrors as errors:
        return [str(error).replace(f"{file.parent}/", "") for error in errors.errors]
    return []


RAM = "device: {type: blk, ram: 1MiB}\n"


@pytest.mark.parametrize("mode", ["server", "client"])
@pytest.mark.parametrize("length", [101, 102, 107, 108])
def test_b6_socket_path_leaves_room_for_the_admin_socket(
    folder: Path, mode: str, length: int
) -> None:
    path = f"{folder}/{'s' * (length - len(str(folder)) - 1)}"
    found = check(folder, f"socket: {{path: {path}, mode: {mode}}}\n{RAM}")
    if length <= 101:
        assert found == []
    else:
        (error,) = found
        assert error.startswith(
            f"disk.yaml:1:16: the socket's path has {length} bytes, more than 101, which leaves "
            "room for the admin socket's .admin: "
        )


def test_b6_longest_socket_path_is_served(folder: Path) -> None:
    name = "s" * (101 - len(str(folder)) - 1)
    file = folder / "disk.yaml"
    file.write_text(f"socket: ./{name}\n{RAM}")
    with serve(file) as served, served.guest():
        assert ask(served.socket, Request("status"))["connected"]


@pytest.mark.parametrize(
    ("beside", "what", "mode", "refused"),
    [
        ("s.admin", "file", "server", "exists and is not a socket"),
        ("s.admin", "file", "client", "exists and is not a socket"),
        ("s.lock", "folder", "server", "exists and is not a regular file"),
        ("s.lock", "folder", "client", None),
        ("s.admin.lock", "link", "server", "exists and is not a regular file"),
        ("s.admin.lock", "file", "server", None),
    ],
)
def test_b6_what_lies_beside_the_socket(
    folder: Path, beside: str, what: str, mode: str, refused: str | None
) -> None:
    there = folder / beside
    match what:
        case "file":
            there.touch()
        case "folder":
            there.mkdir()
        case "link":
            there.symlink_to("elsewhere")
    found = check(folder, f"socket: {{path: ./s, mode: {mode}}}\n{RAM}")
    assert found == ([] if refused is None else [f"disk.yaml:1:16: {beside} {refused}"])


def test_b6_folder_that_cannot_be_written(folder: Path) -> None:
    os.chmod(folder, 0o555)
    file = folder / "disk.yaml"
    file.write_text(f"socket: ./s\n{RAM}")
    try:
        with as_somebody_else():
            (error,) = look(file)
            assert error == f"disk.yaml:1:9: the socket's folder {folder} is not writable"
            # With --fd nothing is made there, and a device that runs has made it.
            assert look(file, makes_socket=False) == []
            assert look(file, look=False) == []
    finally:
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("direct", ["", ", direct: true"])
def test_b6_image_that_cannot_be_written(folder: Path, direct: str) -> None:
    os.chmod(folder / "disk.img", 0o444)
    text = f"socket: ./s\ndevice: {{type: blk, image: ./disk.img{direct}}}\n"
    os.chmod(folder, 0o777)
    check(folder, text)
    with as_somebody_else():
        (error, *more) = look(folder / "disk.yaml")
        assert error == (
            "disk.yaml:2:28: image: disk.img is not writable: permission denied; "
            "set readonly: true to serve it all the same"
        )
        assert more == []
        with pytest.raises(FileRefused, match="not writable"):
            image(folder / "disk.img", direct=bool(direct)).open()
    (folder / "disk.yaml").write_text(text.replace("}", ", readonly: true}"))
    with as_somebody_else():
        assert [error for error in look(folder / "disk.yaml") if "O_DIRECT" not in error] == []


def image(path: Path, **options: Any) -> Image:
    return Image(str(path), **{"readonly": False, "direct": False, "locking": True, **options})


@contextmanager
def loop_device(file: Path, *options: str) -> Iterator[str]:
    """A block device that is a file, if this user may have one. Raises OSError if not."""
    command = ["losetup", "--find", "--show", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=BOUND_S)


READ_ONLY = "is a read-only block device; set readonly: true to serve it all the same"


def test_b6_read_only_block_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel opens it for writing, and fails the writes."""
    text = "socket: ./s\ndevice: {type: blk, image: %s}\n"
    try:
        if shutil.which("losetup") is None:
            raise OSError("losetup is not installed")
        with loop_device(folder / "disk.img", "--read-only") as device:
            os.close(os.open(device, os.O_RDWR))
            assert check(folder, text % device) == [f"disk.yaml:2:28: image: {device} {READ_ONLY}"]
            assert check(folder, text % f"{device}, readonly: true") == []
        with loop_device(folder / "disk.img") as device:
            assert check(folder, text % device) == []
            for fd in image(Path(device)).open().values():
                fd.close()
    except OSError as error:
        # The same with a kernel that says so of a file.
        print(f"no loop device: {error}")
        monkeypatch.setattr("stat.S_ISBLK", lambda _: True)
        monkeypatch.setattr(fcntl, "ioctl", lambda *_: b"\1\0\0\0")
        (error_line,) = check(folder, text % "./disk.img")
        assert error_line == f"disk.yaml:2:28: image: disk.img {READ_ONLY}"


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e7", "86401", "-1"])
def test_b6_stall_timeout_is_a_time_that_can_be_waited(folder: Path, number: str) -> None:
    (error,) = check(folder, f"socket: ./s\n{RAM}stall_timeout: {number}\n")
    assert error.startswith("disk.yaml:3:16: stall_timeout: expected a number")
    assert check(folder, f"socket: ./s\n{RAM}stall_timeout: {MAX_STALL_TIMEOUT_S}\n") == []


AUTHORS = """
from vuproc import Device, Options
class TapeOptions(Options, kw_only=True):
    speed: float = 1.0
    length: int = 0
    label: str = ""
class Tape(Device):
    device_id = 45
    options_type = TapeOptions
    def handle(self, request):
        pass
"""


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("speed: .inf", "2:41: speed: expected a finite number, got .inf"),
        ("speed: .nan", "2:41: speed: expected a finite number, got .nan"),
        ("speed: 1e400", "2:41: speed: "),
        ("length: 18446744073709551616", "2:9: workers cannot be given these options: "),
        ('label: "\\ud800"', "2:9: workers cannot be given these options: "),
    ],
)
def test_b6_options_that_no_worker_could_be_given(folder: Path, option: str, expected: str) -> None:
    (folder / "tape.py").write_text(AUTHORS)
    text = "socket: ./s\ndevice: {type: './tape.py:Tape', %s}\n"
    (error,) = check(folder, text % option)
    assert error.startswith(f"disk.yaml:{expected}")
    assert check(folder, text % "speed: 1e300, length: 18446744073709551615, label: ok") == []


@pytest.mark.parametrize(
    "key", ["socket: {path: %s}\n" + RAM, "socket: s\ndevice: {image: %s, type: blk}\n"]
)
def test_b6_path_of_no_text(folder: Path, key: str) -> None:
    (error,) = check(folder, key % '"./a\\ud800"')
    assert error.endswith("a path cannot hold half of a surrogate pair")


@pytest.mark.parametrize(
    ("device", "where"),
    [
        ("type: net, backend: pcap, path: /none/x", "path: /none/x: No such file or directory"),
        ("type: net, backend: tap, interface: a/b", "interface: no interface is called 'a/b'"),
        ("type: input, evdev: /none", "evdev: /none: No such file or directory"),
        ("type: gpio, chip: /none, lines: [{offset: 1}]", "chip: /none: No such file or directory"),
        ("type: vsock, path: /none/v", "path: /none/v: there is no folder /none"),
        (
            "type: sound, playback: [{backend: wav, path: /none/x.wav}]",
            "playback: /none/x.wav: there is no folder /none",
        ),
    ],
)
def test_b6_what_a_device_of_the_host_names_is_looked_for(
    folder: Path, device: str, where: str
) -> None:
    (error,) = check(folder, f"socket: ./s\ndevice: {{{device}}}\n")
    assert error.startswith("disk.yaml:2:") and f": {where}" in error
