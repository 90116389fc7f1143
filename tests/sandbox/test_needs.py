"""What devices say that they need, what a device file adds, and how `check --sandbox` shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vuproc import Device, Needs
from vuproc.cli.main import main
from vuproc.device_file.check import load
from vuproc.device_file.sandboxed import needs_of, policy_of
from vuproc.devices import BUILTIN
from vuproc.errors import ConfigErrors
from vuproc.sandbox.needs import CAPABILITIES
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice


def needs(folder: Path, device: dict[str, Any], **keys: Any) -> Needs:
    path = folder / "device.yaml"
    path.write_text(json.dumps({"socket": "./s.sock", "device": device, **keys}))
    file = load(path, look=False)
    return needs_of(file, file.make_device())


IMAGE = {"type": "blk", "image": "./i"}
SERVER = "nbd+unix:///x?socket=/run/nbd"
UNIX = {"network": "unix", "capabilities": ("DAC_OVERRIDE",)}


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (IMAGE, {}),
        ({"type": "blk", "ram": 4096}, {}),
        ({**IMAGE, "direct": True}, {"io_uring": True}),
        ({**IMAGE, "engine": "io_uring"}, {"io_uring": True}),
        ({**IMAGE, "direct": True, "engine": "sync"}, {}),
        ({"type": "blk", "url": "https://host/x"}, {"network": True}),
        ({"type": "blk", "nbd": "nbd://host/x"}, {"network": True}),
        ({"type": "blk", "nbd": SERVER}, UNIX),
        ({"type": "blk", "rbd": "pool/disk"}, {"network": True}),
        ({"type": "can"}, {}),
        ({"type": "console"}, {}),
        ({"type": "fs", "tag": "t", "directory": "/srv"},
         {"readable": ("/srv",), "capabilities": ("DAC_READ_SEARCH",)}),
        ({"type": "fs", "tag": "t", "url": "zip://::/srv/t.zip"},
         {"readable": ("/srv/t.zip",), "network": True}),
        ({"type": "gpio", "lines": [{}]}, {}),
        ({"type": "gpio", "lines": [{"offset": 1}], "chip": "/dev/gpiochip0"},
         {"devices": ("/dev/gpiochip0",)}),
        ({"type": "i2c"}, {}),
        ({"type": "i2c", "bus": "/dev/i2c-1"}, {"devices": ("/dev/i2c-1",)}),
        ({"type": "input", "events": "/tmp/events"}, {}),
        ({"type": "input", "evdev": "/dev/input/event3"}, {"devices": ("/dev/input/event3",)}),
        ({"type": "net"}, {}),
        ({"type": "net", "backend": "tap", "interface": "tap0"}, {}),
        ({"type": "net", "backend": "stream", "path": "/run/x"}, UNIX),
        ({"type": "net", "backend": "datagram", "path": "/run/x", "peer": "/run/y"}, UNIX),
        ({"type": "rng"}, {}),
        ({"type": "rtc"}, {}),
        ({"type": "scsi", "luns": [{"image": "./i"}]}, {}),
        ({"type": "sound"}, {}),
        ({"type": "spi"}, {}),
        ({"type": "vsock", "path": "/run/v"}, UNIX),
    ],
    ids=str,
)  # fmt: skip
def test_what_each_device_needs(
    tmp_path: Path, device: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert needs(tmp_path, device) == Needs(**expected)


def test_every_device_is_in_the_list_above() -> None:
    marks = test_what_each_device_needs.pytestmark
    listed = {case[0]["type"] for mark in marks for case in mark.args[1]}
    assert listed == set(BUILTIN)


def test_a_writable_directory_takes_a_file_servers_powers(tmp_path: Path) -> None:
    found = needs(
        tmp_path, {"type": "fs", "tag": "t", "directory": str(tmp_path), "readonly": False}
    )
    assert found.files == (str(tmp_path),)
    assert {"CHOWN", "FOWNER", "DAC_OVERRIDE"} <= set(found.capabilities)


def test_a_device_file_adds_to_it(tmp_path: Path) -> None:
    wanted = {"files": ["./a"], "devices": ["/dev/x"], "network": "unix", "capabilities": ["CHOWN"]}
    found = needs(tmp_path, {**IMAGE, "direct": True}, sandbox=wanted)
    assert found == Needs(
        files=(str(tmp_path / "a"),),
        devices=("/dev/x",),
        network="unix",
        capabilities=("CHOWN",),
        io_uring=True,
    )


def test_postcopy_and_xen_take_what_they_take(tmp_path: Path) -> None:
    assert needs(tmp_path, {"type": "rng"}, postcopy=True).capabilities == ("SYS_PTRACE",)
    assert needs(tmp_path, {"type": "rng"}, xen="on").capabilities == ("SYS_ADMIN",)


def test_both_is_the_more_of_either() -> None:
    both = Needs(files=("/a", "/b"), network="unix").with_more(Needs(files=("/b", "/c")))
    assert both == Needs(files=("/a", "/b", "/c"), network="unix")
    assert Needs(network=True).with_more(Needs(network="unix")).network is True
    with pytest.raises(ValueError, match="CAP_CHOWN"):
        Needs(capabilities=("CAP_CHOWN",))


def test_capabilities_have_the_kernels_numbers() -> None:
    named = {"CHOWN": 0, "NET_ADMIN": 12, "SYS_ADMIN": 21, "SYS_RESOURCE": 24, "BPF": 39}
    assert {name: CAPABILITIES.index(name) for name in named} == named


def test_a_class_that_uses_io_uring_has_said_so() -> None:
    class Plain(Device):
        device_id = 42

        def handle(self, request: object) -> None: ...

    class Ringed(Plain):
        needs = Needs(network=True)

        def uring_files(self, queue: int) -> tuple[int, ...]:
            return (0,)

    assert Plain().sandbox_needs() == Needs()
    assert Ringed().sandbox_needs() == Needs(network=True, io_uring=True)


@pytest.mark.parametrize(
    "wrong",
    [
        "sandbox: on",
        "sandbox: {mode: loose}",
        "sandbox: {files: x}",
        "sandbox: {network: tcp}",
        "sandbox: {capabilities: [CAP_CHOWN]}",
    ],
)
def test_mistakes_in_a_device_file(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(f"socket: ./s.sock\ndevice: {{type: rng}}\n{wrong}\n")
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert "device.yaml:3:" in str(caught.value)


def test_off_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_text("socket: ./s.sock\ndevice: {type: rng}\nsandbox: off\n")
    file = load(path)
    assert policy_of(file, file.make_device()) is None


def test_strict_has_no_io_uring(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    for mode in ("standard", "strict"):
        path.write_text(
            f"socket: ./s.sock\ndevice: {{type: blk, image: {image}, engine: io_uring}}\n"
            f"sandbox: {mode}\n"
        )
        file = load(path)
        policy = policy_of(file, file.make_device())
        assert policy is not None
        assert policy.io_uring == (mode == "standard")


def test_check_prints_what_each_process_may_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(
        "socket: ./s.sock\ndevice: {type: rng}\n"
        "sandbox: {mode: strict, files: [.], network: unix}\n"
    )
    assert main(["check", "--sandbox", str(path)]) == 0
    said = capsys.readouterr().out
    assert "sandbox: strict\n" in said
    assert f"  read, write, make, remove:\n    {tmp_path}\n" in said
    assert "  sockets: of this machine (AF_UNIX)\n" in said
    assert "  io_uring: no\n" in said
    assert "\nnot to be had here: " in said
    allowed = said.partition("  system calls:")[2].split()
    assert {"preadv2", "connect", "chmod"} <= set(allowed)
    assert not {"ptrace", "execve", "io_uring_setup"} & set(allowed)
    assert all(len(line) <= 100 or "/" in line for line in said.splitlines())


def test_check_says_that_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "device.yaml"
    path.write_text("socket: ./s.sock\ndevice: {type: rng}\nsandbox: off\n")
    assert main(["check", "--sandbox", str(path)]) == 0
    assert "every process may do what its user may" in capsys.readouterr().out


def test_it_is_in_the_resolved_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(
        "socket: ./s.sock\ndevice: {type: blk, ram: 4096}\nsandbox: {mode: strict, files: [./x]}\n"
    )
    assert main(["check", "--resolved", str(path)]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert msgspec.structs.asdict(load(again).keys.sandboxed()) == msgspec.structs.asdict(
        load(path).keys.sandboxed()
    )


@pytest.mark.parametrize("mode", ["standard", "strict"])
@pytest.mark.parametrize("engine", ["sync", "map", "io_uring", "python"])
def test_a_disk_serves_in_either_mode(
    vuproc_device: ServeDevice, tmp_path: Path, mode: str, engine: str
) -> None:
    """And once more by another worker, after a death."""
    image = tmp_path / "image"
    image.write_bytes(b"\x2a" * 8192)
    served = vuproc_device(
        {"type": "blk", "image": str(image), "engine": engine}, file={"sandbox": mode}
    )
    with served.guest() as guest:
        for _ in range(2):
            assert _read(guest) == b"\x2a" * 512
            guest.do(
                0, [bytes([1, 0, 0, 0]) + bytes(4) + bytes([8]) + bytes(7), b"\x2b" * 512], [1]
            )
            served.kill_worker()
    assert image.read_bytes()[4096:4608] == b"\x2b" * 512
    assert served.status().sandbox_lacks == []


def _read(guest: Guest) -> bytes:
    done = guest.do(0, [bytes(16)], [512, 1], timeout_s=30.0)
    assert done.content[512:] == b"\0"
    return done.content[:512]
