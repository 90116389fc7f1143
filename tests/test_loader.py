"""From a device file's `type` to a class, and what is said when there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import pytest

from vuproc import loader
from vuproc.device import Device
from vuproc.devices import BUILTIN
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.errors import DeviceLoadError

ENTROPY = """\
import os
from vuproc import Device, Request

class Entropy(Device):
    \"\"\"virtio-rng.\"\"\"
    device_id = 4

    def handle(self, request: Request) -> None:
        request.write(os.urandom(request.writable))
"""


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test made importable."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def reason(ref: str, base: Path) -> str:
    with pytest.raises(DeviceLoadError) as caught:
        loader.load(ref, base)
    assert caught.value.ref == ref
    return caught.value.reason.replace(f"{base}/", "")


def test_built_in_name(tmp_path: Path) -> None:
    assert loader.load("blk", tmp_path) is Blk


@pytest.mark.parametrize("ref", ["./entropy.py:Entropy", "entropy.py:Entropy"])
def test_class_in_a_file_relative_to_the_device_file(tmp_path: Path, ref: str) -> None:
    (tmp_path / "entropy.py").write_text(ENTROPY)
    found = loader.load(ref, tmp_path)
    assert issubclass(found, Device)
    assert (found.__name__, found.device_id) == ("Entropy", 4)
    assert loader.load(ref, tmp_path) is found


def test_class_in_a_file_by_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "entropy.py").write_text(ENTROPY)
    assert loader.load(f"{tmp_path}/entropy.py:Entropy", Path("/")).device_id == 4


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "entropy.py").write_text(ENTROPY)
    first = loader.load("./entropy.py:Entropy", tmp_path)
    (tmp_path / "entropy.py").write_text(ENTROPY.replace("device_id = 4", "device_id = 44"))
    assert loader.load("./entropy.py:Entropy", tmp_path).device_id == 44
    assert first.device_id == 4


def test_class_in_an_importable_module(tmp_path: Path) -> None:
    assert loader.load("vuproc.devices.blk:Blk", tmp_path) is Blk


def test_module_beside_the_device_file(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text(ENTROPY)
    assert loader.load("beside_it:Entropy", tmp_path).device_id == 4


def test_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_it.py").write_text("NUMBER = 42\n")
    text = ENTROPY.replace("device_id = 4", "device_id = neighbour_of_it.NUMBER")
    (tmp_path / "entropy.py").write_text(f"import neighbour_of_it\n{text}")
    assert loader.load("./entropy.py:Entropy", tmp_path).device_id == 42


def test_entry_point_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [
        EntryPoint("disk2", "vuproc.devices.blk:Blk", loader.ENTRY_POINTS),
        EntryPoint("gone", "no_such_package:Device", loader.ENTRY_POINTS),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    assert loader.load("disk2", tmp_path) is Blk
    assert list(loader.available()) == [*BUILTIN, "disk2", "gone"]
    assert reason("gone", tmp_path) == "no_such_package:Device: no module named no_such_package"
    assert reason("disk", tmp_path) == "no such device type; did you mean disk2?"


def test_build_makes_the_device_of_packed_options(tmp_path: Path) -> None:
    options = BlkOptions(ram=512, queues=3)
    device = loader.build("blk", tmp_path, msgspec.msgpack.encode(options))
    assert isinstance(device, Blk)
    assert device.options == options


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("bkl", "no such device type; did you mean blk?"),
        ("nothing", "no such device type; write ./file.py:Class for one of your own"),
        ("./gone.py:X", "gone.py: no such file or directory"),
        ("no_such_module:X", "no module named no_such_module"),
        ("no.such.module:X", "no module named no"),
        ("./entropy.py:Entropi", "no class Entropi; did you mean Entropy?"),
        ("./entropy.py:Quite.Other", "no class Quite.Other; it has Entropy"),
        ("./entropy.py:os", "os is not a subclass of vuproc.Device"),
        ("./entropy.py:Device", "Device has no method handle"),
    ],
)
def test_reference_to_nothing(tmp_path: Path, ref: str, expected: str) -> None:
    (tmp_path / "entropy.py").write_text(ENTROPY)
    assert reason(ref, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def (:", "author.py:1: invalid syntax"),
        ("1 / 0", "author.py:1: ZeroDivisionError: division by zero"),
        (
            "\nimport no_such_module",
            "author.py:2: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (ENTROPY.replace("device_id = 4", "pass"), "author.py:4: Entropy sets no device_id"),
        (
            ENTROPY.replace("device_id", "devide_id"),
            "author.py:4: Entropy sets no device_id; is it meant by devide_id?",
        ),
        ("import sys\nsys.exit('no hardware')", "author.py:2: SystemExit: no hardware"),
        ("import json\njson.loads('{')", "author.py:2: JSONDecodeError: Expecting property name"),
        (
            ENTROPY.replace("device_id = 4", "device_id = 0"),
            "author.py:6: Entropy.device_id is 0, not one of 1 to 63",
        ),
        (
            ENTROPY.replace("device_id = 4", "device_id = '4'"),
            "author.py:6: Entropy.device_id is '4', not one of 1 to 63",
        ),
        (
            ENTROPY.replace("device_id = 4", "device_id = 4\n    options_type = dict"),
            "author.py:7: Entropy.options_type is not a subclass of vuproc.Options",
        ),
    ],
)
def test_file_that_is_no_device(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "author.py").write_text(text)
    assert reason("./author.py:Entropy", tmp_path).startswith(expected)
    # The failed module is not left behind half made.
    assert reason("./author.py:Entropy", tmp_path).startswith(expected)
