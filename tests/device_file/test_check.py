"""Device files: what they become, and every way they can be wrong, with its place."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vuproc.device_file.check import DeviceFile, load
from vuproc.device_file.resolved import resolved
from vuproc.device_file.yaml_text import MAX_BYTES
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.errors import ConfigErrors

GOOD = """\
# disk.yaml
socket: ./disk.sock
device:
  type: blk
  image: ./disk.raw
  queues: 4
  queue_size: 256
  readonly: false
  serial: demo-0
"""

ENTROPY = """\
import os
from vuproc import Device, Request

class Entropy(Device):
    \"\"\"virtio-rng.\"\"\"
    device_id = 4

    def handle(self, request: Request) -> None:
        request.write(os.urandom(request.writable))
"""


class Folder:
    """A folder with a disk image, for device files; `check` gives the errors as printed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "sub").mkdir()
        (path / "disk.raw").write_bytes(bytes(1 << 20))

    def load(self, text: str | bytes) -> DeviceFile:
        data = text.encode() if isinstance(text, str) else text
        (self.path / "disk.yaml").write_bytes(data)
        return load(self.path / "disk.yaml")

    def check(self, text: str | bytes) -> list[str]:
        try:
            self.load(text)
        except ConfigErrors as errors:
            prefix = f"{self.path}/"
            return [str(error).replace(prefix, "") for error in errors.errors]
        return []


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def blk(*lines: str) -> str:
    """A device file with a memory disk and these further lines of its device."""
    return "\n".join(["socket: s", "device:", "  type: blk", *(f"  {line}" for line in lines)])


# What a good file becomes.


def test_file_of_the_manual(folder: Folder) -> None:
    file = folder.load(GOOD)
    assert file.path == folder.path / "disk.yaml"
    assert file.base_dir == folder.path
    assert file.socket.path == str(folder.path / "disk.sock")
    assert (file.socket.mode, file.socket.permissions) == ("server", 0o600)
    assert file.keys.exit_on_disconnect is False
    assert file.workers == ((0,), (1,), (2,), (3,))
    assert file.keys.log_level == "info"
    assert (file.type_ref, file.device_type) == ("blk", Blk)
    assert file.options == BlkOptions(
        image=str(folder.path / "disk.raw"), queues=4, queue_size=256, serial="demo-0"
    )
    assert file.make_device().num_queues() == 4


def test_everything_said(folder: Folder) -> None:
    file = folder.load(
        "socket: {path: /tmp/x.sock, mode: client, permissions: 0660}\n"
        "device: {type: blk, ram: 64MiB, queues: 4}\n"
        "exit_on_disconnect: true\nworkers: [[0, 2], [1, 3]]\nlog_level: debug\n"
    )
    assert file.socket.path == "/tmp/x.sock"
    assert (file.socket.mode, file.socket.permissions) == ("client", 0o660)
    assert file.keys.exit_on_disconnect is True
    assert file.workers == ((0, 2), (1, 3))
    assert file.keys.log_level == "debug"
    assert isinstance(file.options, BlkOptions)
    assert file.options.ram == 64 << 20


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0600", 0o600),
        ("0o600", 0o600),
        ('"0600"', 0o600),
        ("'0o640'", 0o640),
        ("600", 0o600),
        ("0777", 0o777),
        ("0", 0),
    ],
)
def test_permissions_are_octal_digits(folder: Folder, written: str, meant: int) -> None:
    text = f"socket: {{path: s, permissions: {written}}}\ndevice: {{type: blk, ram: 512}}\n"
    assert folder.load(text).socket.permissions == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("65536", 65536),
        ('"65536"', 65536),
        ("512B", 512),
        ("4KiB", 4096),
        ("64MiB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("2GiB", 2 << 30),
        ("1TiB", 1 << 40),
        ("0x1000", 4096),
    ],
)
def test_sizes(folder: Folder, written: str, meant: int) -> None:
    options = folder.load(blk(f"ram: {written}")).options
    assert isinstance(options, BlkOptions)
    assert options.ram == meant


def test_yaml_1_2_leaves_colons_and_yes_alone(folder: Folder) -> None:
    for serial in ("52:54:00:12:34:56", "yes", "2001-12-14", "1e"):
        options = folder.load(blk("ram: 512", f"serial: {serial}")).options
        assert isinstance(options, BlkOptions)
        assert options.serial == serial


def test_alias_of_an_anchor(folder: Folder) -> None:
    file = folder.load("socket: &s ./x\ndevice: {type: blk, ram: 512, serial: *s}\n")
    assert isinstance(file.options, BlkOptions)
    assert file.options.serial == "./x"


def test_author_device_as_in_the_manual(folder: Folder) -> None:
    (folder.path / "entropy.py").write_text(ENTROPY)
    file = folder.load("socket: ./s\ndevice: {type: './entropy.py:Entropy'}\n")
    device = file.make_device()
    assert (device.device_id, device.num_queues(), device.queue_size()) == (4, 1, 256)
    assert file.workers == ((0,),)


def test_file_with_a_byte_order_mark(folder: Folder) -> None:
    assert folder.check(b"\xef\xbb\xbf" + GOOD.encode()) == []


def test_relative_name_of_the_file_itself(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.path / "disk.yaml").write_text(GOOD.replace("blk", "blkk"))
    monkeypatch.chdir(folder.path)
    with pytest.raises(ConfigErrors) as caught:
        load("disk.yaml")
    (error,) = caught.value.errors
    assert str(error).startswith("disk.yaml:4:9: ")
    assert (error.file, error.line, error.column) == ("disk.yaml", 4, 9)


# What is wrong, and where.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["disk.yaml:1:1: expected a mapping with the keys socket and device"]),
        ("- 1", ["disk.yaml:1:1: expected a mapping with the keys socket and device"]),
        (
            "device: {type: blk, ram: 512}",
            ["disk.yaml:1:1: missing key socket"],
        ),
        ("socket: s", ["disk.yaml:1:1: missing key device"]),
        ("socket: s\ndevice: 3", ["disk.yaml:2:9: device: expected a mapping with the key type"]),
        ("socket: s\ndevice: {ram: 512}", ["disk.yaml:2:9: missing key type"]),
        (
            "socket: s\ndevice: {type: 3}",
            ["disk.yaml:2:16: type: expected the name of a device type"],
        ),
        (
            "sockte: s\ndevice: {type: blk, ram: 512}",
            [
                "disk.yaml:1:1: unknown key sockte; did you mean socket?",
                "disk.yaml:1:1: missing key socket",
            ],
        ),
        (
            "socket: {path: s, mode: servr, permission: 0600}\ndevice: {type: blk, ram: 512}",
            [
                "disk.yaml:1:25: mode: expected server or client, got servr; did you mean server?",
                "disk.yaml:1:32: unknown key permission; did you mean permissions?",
            ],
        ),
        (
            "socket: {mode: client}\ndevice: {type: blk, ram: 512}",
            ["disk.yaml:1:9: missing key path"],
        ),
        (
            "socket: [s]\ndevice: {type: blk, ram: 512}",
            ["disk.yaml:1:9: socket: expected a string or a mapping, got a list"],
        ),
        (
            "socket: ''\ndevice: {type: blk, ram: 512}",
            ["disk.yaml:1:9: socket: expected a path, got nothing"],
        ),
        (
            "socket: s\ndevice: {type: blk, ram: 512}\nsocket: t\nlog_level: trace",
            [
                "disk.yaml:3:1: duplicate key socket (first on line 1)",
                "disk.yaml:4:12: log_level: expected debug, info, warning or error, got trace",
            ],
        ),
        (
            "socket: s\nexit_on_disconnect: yes\ndevice: {type: blk, ram: 512}",
            [
                "disk.yaml:2:21: exit_on_disconnect: expected true or false, got a string 'yes'; "
                "write true or false"
            ],
        ),
        (
            "socket: s\nexit_on_disconnect:\ndevice: {type: blk, ram: 512}",
            ["disk.yaml:3:1: exit_on_disconnect has no value; leave the line out for the default"],
        ),
        (
            "socket: nowhere/s\ndevice: {type: blk, ram: 512}",
            ["disk.yaml:1:9: the socket's folder nowhere does not exist"],
        ),
        (
            "socket: disk.raw\ndevice: {type: blk, ram: 512}",
            ["disk.yaml:1:9: disk.raw exists and is not a socket"],
        ),
    ],
)
def test_errors_of_the_file(folder: Folder, text: str, expected: list[str]) -> None:
    assert folder.check(text) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ["3: blk needs image, base, url, nbd, rbd or ram"]),
        (["ram: 512", "image: disk.raw"], ["4:8: ram: image and ram exclude each other"]),
        (
            ["imgae: disk.raw"],
            [
                "3: blk needs image, base, url, nbd, rbd or ram",
                "4:3: unknown key imgae; did you mean image?",
            ],
        ),
        (["image: gone.raw"], ["4:10: image: gone.raw: no such file or directory"]),
        (["image: sub"], ["4:10: image: sub: is a directory, not a raw file or block device"]),
        (["ram: 512", "queues: 0"], ["5:11: queues: expected an integer >= 1, got 0"]),
        (["ram: 512", "queues: 257"], ["5:11: queues: expected an integer <= 256, got 257"]),
        (["ram: 512", "queues: 2.0"], ["5:11: queues: expected an integer, got a number 2.0"]),
        (
            ["ram: 512", "queues: '2'"],
            ["5:11: queues: expected an integer, got a string '2'; write it without quotes"],
        ),
        (["ram: 512", "queue_size: 100"], ["5:15: queue_size: expected a power of two, got 100"]),
        (["ram: 512", "queue_size: 1"], ["5:15: queue_size: expected an integer >= 2, got 1"]),
        (
            ["ram: 512", "queue_size: 65536"],
            ["5:15: queue_size: expected an integer <= 32768, got 65536"],
        ),
        (
            ["ram: 512", "serial: 1234"],
            ['5:11: serial: expected a string, got an integer 1234; quote it: "1234"'],
        ),
        (
            ["ram: 512", f"serial: {'x' * 21}"],
            [f"5:11: serial: expected a string of length <= 20, got {'x' * 21}"],
        ),
        (
            ["ram: 512", "block_size: 513"],
            ["5:15: block_size: expected 512, 1024, 2048 or 4096, got 513"],
        ),
        (["ram: 513"], ["4:8: ram: expected an integer that's a multiple of 512, got 513"]),
        (["ram: 0"], ["4:8: ram: expected an integer >= 512, got 0"]),
        (
            ["ram: 64MB"],
            ["4:8: ram: unknown unit MB in size '64MB'; units are B, KiB, MiB, GiB, TiB"],
        ),
        (["ram: lots"], ["4:8: ram: expected a size such as 64MiB, got 'lots'"]),
        (["ram: -512"], ["4:8: ram: expected an integer >= 512, got -512"]),
        (["ram: [1]"], ["4:8: ram: expected an integer, got a list"]),
        (
            ["ram: 1KiB", "block_size: 4096"],
            ["4:8: ram: 1024 bytes are not a multiple of the block size 4096"],
        ),
        (
            ["queues: many", "queue_size: 3", "readonly: 1", "ram: 1", "colour: red"],
            [
                "4:11: queues: expected an integer, got a string 'many'",
                "5:15: queue_size: expected a power of two, got 3",
                "6:13: readonly: expected true or false, got an integer 1",
                "7:8: ram: expected an integer >= 512, got 1",
                "8:3: unknown key colour",
            ],
        ),
    ],
)
def test_errors_of_blk(folder: Folder, lines: list[str], expected: list[str]) -> None:
    found = [error.removeprefix("disk.yaml:") for error in folder.check(blk(*lines))]
    wanted = [
        line.replace("3: ", "3:3: ", 1) if line.startswith("3: ") else line for line in expected
    ]
    assert found == wanted


def test_image_of_an_odd_size(folder: Folder) -> None:
    os.truncate(folder.path / "disk.raw", 1000)
    assert folder.check(GOOD) == [
        "disk.yaml:5:10: image: disk.raw: 1000 bytes are not a multiple of 512"
    ]
    os.truncate(folder.path / "disk.raw", 0)
    assert folder.check(GOOD) == ["disk.yaml:5:10: image: disk.raw is empty"]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ("[[0, 1], [2, 3]]", []),
        ("[[3, 2, 1, 0]]", []),
        ("[[0, 1], [2]]", ["10: queue 3 is missing: every queue needs a worker"]),
        ("[[0], [2]]", ["10: queues 1, 3 are missing: every queue needs a worker"]),
        ("[[0, 1], [1, 2, 3]]", ["20: queue 1 is named twice"]),
        ("[[0, 1], [2, 3, 4]]", ["26: the device has no queue 4; its queues are 0 to 3"]),
        ("[[0, 1, 2, 3], []]", ["25: a worker needs a queue"]),
    ],
)
def test_workers_name_each_queue_once(folder: Folder, workers: str, expected: list[str]) -> None:
    text = f"socket: s\ndevice: {{type: blk, ram: 512, queues: 4}}\nworkers: {workers}\n"
    assert folder.check(text) == [
        f"disk.yaml:3:{error.replace(': ', ': workers: ', 1)}" for error in expected
    ]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ("3", "10: workers: expected a list, got an integer 3"),
        ("[]", "10: workers: expected a list of length >= 1"),
        ("[0, 1]", "11: workers[0]: expected a list, got an integer 0"),
        ("[[a]]", "12: workers[0][0]: expected an integer, got a string 'a'"),
        ("[[-1]]", "12: workers[0][0]: expected an integer >= 0, got -1"),
    ],
)
def test_workers_of_the_wrong_type(folder: Folder, workers: str, expected: str) -> None:
    text = f"socket: s\ndevice: {{type: blk, ram: 512}}\nworkers: {workers}\n"
    assert folder.check(text)[0] == f"disk.yaml:3:{expected}"


def test_workers_cannot_part_queues_that_share_state(folder: Folder) -> None:
    (folder.path / "pair.py").write_text(
        "from vuproc import Device\n"
        "class Pair(Device):\n"
        "    device_id = 3\n"
        "    def num_queues(self): return 4\n"
        "    def queue_groups(self): return [(0, 1), (2, 3)]\n"
        "    def handle(self, request): pass\n"
    )
    text = "socket: s\ndevice: {type: 'pair.py:Pair'}\n"
    assert folder.load(text).workers == ((0, 1), (2, 3))
    assert folder.load(text + "workers: [[0, 1, 2, 3]]").workers == ((0, 1, 2, 3),)
    assert folder.check(text + "workers: [[0, 2], [1, 3]]") == [
        "disk.yaml:3:10: workers: queues 0, 1 must share a worker on this device",
        "disk.yaml:3:10: workers: queues 2, 3 must share a worker on this device",
    ]


def test_socket_path_longer_than_the_kernel_takes(folder: Folder) -> None:
    name = "x" * (101 - len(str(folder.path)) - 1)
    assert folder.check(f"socket: {name}\ndevice: {{type: blk, ram: 512}}") == []
    (error,) = folder.check(f"socket: {name}x\ndevice: {{type: blk, ram: 512}}")
    assert error.startswith("disk.yaml:1:9: the socket's path has 102 bytes, more than 101")


def test_socket_that_is_one_already_is_no_error(folder: Folder) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.path / "disk.sock"))
        assert folder.check(GOOD) == []


def test_socket_of_the_vmm_need_not_be_there_and_its_folder_must(folder: Folder) -> None:
    text = "socket: {path: sub/s, mode: client}\ndevice: {type: blk, ram: 512}"
    assert folder.check(text) == []
    # The admin socket goes there.
    (error,) = folder.check(text.replace("sub", "later"))
    assert error == "disk.yaml:1:16: the socket's folder later does not exist"


# Text that is no YAML.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c", "1:5: mapping values are not allowed here"),
        (
            "a: 'x",
            "1:6: found unexpected end of stream (while scanning a quoted scalar from line 1)",
        ),
        ("a: 1\n---\nb: 2", "2:1: but found another document"),
        ("a:\n\t- b", "2:1: found character '\\t' that cannot start any token"),
        ("a: \x01", "1:4: character 1 is not allowed"),
        ("a: *x", "1:4: found undefined alias 'x'"),
        ("[" * 3000, "1:1: nested too deeply"),
    ],
)
def test_yaml_syntax(folder: Folder, text: str, expected: str) -> None:
    (error,) = folder.check(text)
    assert error.startswith(f"disk.yaml:{expected.partition(' (')[0]}")


def test_keys_and_tags_that_a_device_file_has_not(folder: Folder) -> None:
    assert folder.check("socket: !path s\n? [1]\n: 2\ndevice: {type: blk, ram: 512}") == [
        "disk.yaml:1:9: unknown tag !path",
        "disk.yaml:2:3: a key must be a plain word",
    ]


def test_text_that_is_not_utf_8(folder: Folder) -> None:
    assert folder.check(b"socket: s\nx: \xe4\n") == ["disk.yaml:2:4: not UTF-8 text"]


def test_aliases_of_aliases_are_bounded(folder: Folder) -> None:
    lines = ["a0: &a0 [" + "1," * 9 + "1]"]
    lines += [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 10)]
    (error,) = folder.check("\n".join(lines))
    assert error.endswith("too many values")


def test_alias_inside_its_own_anchor(folder: Folder) -> None:
    (error,) = folder.check("socket: &a [*a]")
    assert error.startswith("disk.yaml:1:")


def test_huge_file(folder: Folder) -> None:
    assert folder.check(b"#" * (MAX_BYTES + 1)) == [
        f"disk.yaml: more than {MAX_BYTES} bytes, too much for a device file"
    ]


def test_huge_number(folder: Folder) -> None:
    (error,) = folder.check(blk("ram: 512", f"queues: {'9' * 5000}"))
    assert error.startswith("disk.yaml:5:11: queues: expected an integer, got a string '999")
    assert len(error) < 150


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path / "gone.yaml")
    assert str(caught.value) == f"{tmp_path}/gone.yaml: no such file or directory"


# Author devices that go wrong.


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    def num_queues(self): return 0", "num_queues() is 0, not 1 to 256"),
        (
            "    def queue_size(self): return 100",
            "queue_size() is 100, not a power of two from 2 to 32768",
        ),
        (
            "    features = 1 << 30",
            "offered_features() is 1073741824: "
            "a device has bits 0 to 23, 35 (IN_ORDER) and 50 to 63",
        ),
        ("    def config_space(self): return 'x'", "config_space() is of type str, not bytes"),
        (
            "    def config_space(self): return bytes(4085)",
            "config_space() has 4085 bytes, more than 4084",
        ),
        (
            "    def queue_groups(self): return [(0,), (0,)]",
            "queue_groups() is [(0,), (0,)]: queue 0 is named twice",
        ),
        (
            "    def __init__(self, options): raise RuntimeError('no hardware')",
            "__init__: RuntimeError: no hardware",
        ),
    ],
)
def test_device_that_describes_itself_wrongly(folder: Folder, body: str, expected: str) -> None:
    (folder.path / "bad.py").write_text(
        "from vuproc import Device\nclass Bad(Device):\n    device_id = 4\n"
        f"    def handle(self, request): pass\n{body}\n"
    )
    assert folder.check("socket: s\ndevice:\n  type: ./bad.py:Bad\n") == [
        f"disk.yaml:3:9: type: bad.py:5: Bad.{expected}"
    ]


def test_options_of_an_author(folder: Folder) -> None:
    (folder.path / "rich.py").write_text(
        "from typing import Annotated\n"
        "import msgspec\n"
        "from msgspec import Meta\n"
        "from vuproc import Device, FilePath, Options, Size\n"
        "class Port(msgspec.Struct, forbid_unknown_fields=True):\n"
        "    name: str\n"
        "    log: FilePath | None = None\n"
        "class RichOptions(Options, kw_only=True):\n"
        "    ports: list[Port]\n"
        "    limit: Annotated[Size, Meta(ge=1024)] = 4096\n"
        "    def problems(self):\n"
        "        yield from super().problems()\n"
        "        if len(self.ports) > self.queues: yield 'ports', 'more ports than queues'\n"
        "class Rich(Device):\n"
        "    device_id = 3\n"
        "    options_type = RichOptions\n"
        "    def handle(self, request): pass\n"
    )
    head = "socket: s\ndevice:\n  type: rich.py:Rich\n"
    options = folder.load(head + "  ports: [{name: a, log: a.log}]\n  limit: 2KiB\n").options
    assert options.ports[0].log == str(folder.path / "a.log")  # type: ignore[attr-defined]
    assert options.limit == 2048  # type: ignore[attr-defined]
    assert folder.check(head + "  ports: [{name: a}, {name: b}]\n") == [
        "disk.yaml:4:10: ports: more ports than queues"
    ]
    assert folder.check(head + "  ports: [{nam: a}, {name: 3}, 4]\n  limit: 1\n") == [
        "disk.yaml:4:11: missing key name",
        "disk.yaml:4:12: unknown key nam; did you mean name?",
        'disk.yaml:4:28: name: expected a string, got an integer 3; quote it: "3"',
        "disk.yaml:4:32: expected a mapping, got 4",
        "disk.yaml:5:10: limit: expected an integer >= 1024, got 1",
    ]


# The file as it is understood.


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "socket: {path: s, mode: client, permissions: 0007}\n"
        "device: {type: blk, ram: 64MiB, queues: 2, serial: '0123'}\n"
        "workers: [[1, 0]]\nexit_on_disconnect: true\nlog_level: error\n",
        "socket: s\ndevice: {type: './entropy.py:Entropy', queues: 2}\n",
        f"socket: {{path: s, owner: {os.geteuid()}, group: {os.getegid()}}}\n"
        "device: {type: blk, ram: 512}\n",
    ],
)
def test_resolved_file_means_the_same(folder: Folder, text: str, tmp_path: Path) -> None:
    (folder.path / "entropy.py").write_text(ENTROPY)
    file = folder.load(text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "copy.yaml").write_text(resolved(file))
    again = load(elsewhere / "copy.yaml")
    assert again.socket == file.socket
    assert again.options == file.options
    assert again.device_type.__name__ == file.device_type.__name__
    assert again.workers == file.workers
    assert resolved(again) == resolved(file)


def test_postcopy_goes_without_an_iommu(folder: Folder) -> None:
    (error,) = folder.check(f"{GOOD}iommu: true\npostcopy: true\n")
    assert error.endswith("postcopy: not together with iommu: true")


@pytest.mark.parametrize("other", ["iommu", "postcopy"])
def test_xen_goes_without_an_iommu_and_postcopy(folder: Folder, other: str) -> None:
    (error,) = folder.check(f"{GOOD}xen: auto\n{other}: true\n")
    assert error.endswith(f"xen: not together with {other}: true")


def test_resolved_file_has_every_default(folder: Folder) -> None:
    assert (
        resolved(folder.load(GOOD))
        == f"""\
socket:
  path: {folder.path}/disk.sock
  mode: server
  permissions: 0o600
device:
  type: blk
  queues: 4
  queue_size: 256
  poll: auto
  trace: 0
  image: {folder.path}/disk.raw
  write_back: off
  write_back_end: 30
  rbd_user: ''
  readonly: false
  serial: demo-0
  block_size: 512
  cache: writeback
  direct: false
  engine: auto
  locking: auto
exit_on_disconnect: false
workers: [[0], [1], [2], [3]]
packed: true
inband_notifications: false
iommu: false
postcopy: false
xen: off
sandbox: standard
stall_timeout: 30.0
hook_timeout: 30.0
log_level: info
log_format: text"""
    )


# Metrics.


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("unix:m.sock", "unix:{folder}/m.sock"),
        ("unix:/run/m", "unix:/run/m"),
        ("127.0.0.1:9123", "127.0.0.1:9123"),
        ("127.1.2.3:65535", "127.1.2.3:65535"),
        ("'[::1]:9123'", "[::1]:9123"),
    ],
)
def test_where_metrics_are_to_be_had(folder: Folder, written: str, meant: str) -> None:
    file = folder.load(blk("ram: 512") + f"\nmetrics: {written}\n")
    assert file.keys.metrics == meant.format(folder=folder.path)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("0.0.0.0:9123", "0.0.0.0 is no loopback address: metrics are not for other machines"),
        (
            "192.168.1.1:80",
            "192.168.1.1 is no loopback address: metrics are not for other machines",
        ),
        ("localhost:9123", "expected unix:PATH or 127.0.0.1:PORT, got 'localhost:9123'"),
        ("127.0.0.1", "expected unix:PATH or 127.0.0.1:PORT, got '127.0.0.1'"),
        ("127.0.0.1:0", "expected a port from 1 to 65535, got '0'"),
        ("127.0.0.1:65536", "expected a port from 1 to 65535, got '65536'"),
        ("127.0.0.1:9x", "expected a port from 1 to 65535, got '9x'"),
        ("'unix:'", "expected a path, got nothing"),
    ],
)
def test_where_they_are_not(folder: Folder, written: str, problem: str) -> None:
    text = blk("ram: 512") + f"\nmetrics: {written}\n"
    assert folder.check(text) == [f"disk.yaml:5:10: metrics: {problem}"]
