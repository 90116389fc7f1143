"""The JSON Schema agrees with the checker on good and bad device files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from vuproc.cli.reference import markdown
from vuproc.device_file.check import load
from vuproc.device_file.fixed import fixed_options
from vuproc.device_file.model import File, Sandbox, Socket
from vuproc.device_file.schema import schema
from vuproc.devices import BUILTIN
from vuproc.errors import ConfigErrors
from vuproc.loader import load as load_type

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    made = schema()
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def accepts(validator: Draft202012Validator, text: str) -> bool:
    content: Any = YAML(typ="safe", pure=True).load(io.StringIO(text))
    return bool(validator.is_valid(content))


def checks(folder: Path, text: str) -> bool:
    (folder / "disk.raw").write_bytes(bytes(4096))
    (folder / "entropy.py").write_text(
        "from vuproc import Device\n"
        "class Entropy(Device):\n    device_id = 4\n    def handle(self, request): pass\n"
    )
    (folder / "disk.yaml").write_text(text)
    try:
        load(folder / "disk.yaml")
    except ConfigErrors:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "socket: s\ndevice: {type: blk, image: disk.raw}",
        "socket: s\ndevice: {type: blk, ram: 64MiB, queues: 4, queue_size: 256, readonly: true}",
        "socket: s\ndevice: {type: blk, ram: 512, serial: demo-0, block_size: 512}",
        "socket: {path: s, mode: client, permissions: 0600}\ndevice: {type: blk, ram: 512}",
        "socket: {path: s, permissions: 0o640}\ndevice: {type: blk, ram: 512}",
        'socket: {path: s, permissions: "0660"}\ndevice: {type: blk, ram: 512}',
        "socket: s\ndevice: {type: blk, ram: 512, queues: 2}\nworkers: [[0, 1]]",
        "socket: s\ndevice: {type: blk, ram: 512}\nexit_on_disconnect: true\nlog_level: debug",
        "socket: s\ndevice: {type: './entropy.py:Entropy', queues: 2, queue_size: 64}",
        "socket: s\ndevice: {type: net}",
        "socket: s\ndevice: {type: net, backend: null, pairs: 16}",
        "socket: s\ndevice: {type: net, backend: 'null', mac: '52:54:00:12:34:56', mtu: 68}",
        "socket: s\ndevice: {type: net, backend: loopback, queue_size: 1024}",
        "socket: s\ndevice: {type: scsi, luns: [{ram: 1MiB}, {image: disk.raw, target: 9}]}",
        "socket: s\ndevice: {type: scsi, luns: [{ram: 512}], unplugged: [0], request_queues: 64}",
    ],
)
def test_good_files_are_good_to_both(
    validator: Draft202012Validator, tmp_path: Path, text: str
) -> None:
    assert checks(tmp_path, text)
    assert accepts(validator, text)


@pytest.mark.parametrize(
    "text",
    [
        "socket: s",
        "device: {type: blk, ram: 512}",
        "- 1",
        "socket: ''\ndevice: {type: blk, ram: 512}",
        "socket: [s]\ndevice: {type: blk, ram: 512}",
        "socket: {mode: client}\ndevice: {type: blk, ram: 512}",
        "socket: {path: s, mode: both}\ndevice: {type: blk, ram: 512}",
        "socket: {path: s, permissions: rw}\ndevice: {type: blk, ram: 512}",
        "socket: {path: s, permissions: 7777}\ndevice: {type: blk, ram: 512}",
        "socket: {path: s, speed: 3}\ndevice: {type: blk, ram: 512}",
        "socket: s\ndevice: {ram: 512}",
        "socket: s\ndevice: {type: blkk, ram: 512}",
        "socket: s\ndevice: {type: 3}",
        "socket: s\ndevice: {type: blk}",
        "socket: s\ndevice: {type: blk, ram: 512, image: disk.raw}",
        "socket: s\ndevice: {type: blk, ram: 513}",
        "socket: s\ndevice: {type: blk, ram: 64MB}",
        "socket: s\ndevice: {type: blk, ram: 512, imgae: disk.raw}",
        "socket: s\ndevice: {type: blk, ram: 512, queues: 0}",
        "socket: s\ndevice: {type: blk, ram: 512, queues: four}",
        "socket: s\ndevice: {type: blk, ram: 512, queue_size: 100}",
        "socket: s\ndevice: {type: blk, ram: 512, queue_size: 65536}",
        "socket: s\ndevice: {type: blk, ram: 512, readonly: 1}",
        "socket: s\ndevice: {type: blk, ram: 512, serial: 1234}",
        f"socket: s\ndevice: {{type: blk, ram: 512, serial: {'x' * 21}}}",
        "socket: s\ndevice: {type: blk, ram: 512, block_size: 4095}",
        "socket: s\ndevice: {type: blk, ram: 512, cache: none}",
        "socket: s\ndevice: {type: blk, ram: 512, image: }",
        "socket: s\ndevice: {type: './entropy.py:Entropy', queues: 257}",
        "socket: s\ndevice: {type: net, queues: 2}",
        "socket: s\ndevice: {type: net, pairs: 17}",
        "socket: s\ndevice: {type: net, backend: tap}",
        "socket: s\ndevice: {type: net, mac: '52:54:00:12:34'}",
        "socket: s\ndevice: {type: net, mtu: 67}",
        "socket: s\ndevice: {type: scsi}",
        "socket: s\ndevice: {type: scsi, luns: []}",
        "socket: s\ndevice: {type: scsi, luns: [{ram: 512, lun: 16384}]}",
        "socket: s\ndevice: {type: scsi, luns: [{ram: 512, kind: tape}]}",
        "socket: s\ndevice: {type: scsi, luns: [{ram: 512}], queues: 3}",
        "socket: s\ndevice: {type: blk, ram: 512}\nworkers: []",
        "socket: s\ndevice: {type: blk, ram: 512}\nworkers: [0]",
        "socket: s\ndevice: {type: blk, ram: 512}\nlog_level: loud",
        "socket: s\ndevice: {type: blk, ram: 512}\nexit_on_disconnect: yes",
        "socket: s\ndevice: {type: blk, ram: 512}\nname: x",
    ],
)
def test_bad_files_are_bad_to_both(
    validator: Draft202012Validator, tmp_path: Path, text: str
) -> None:
    assert not checks(tmp_path, text)
    assert not accepts(validator, text)


def test_every_key_has_a_description(validator: Draft202012Validator) -> None:
    made = validator.schema
    assert isinstance(made, dict)
    definitions = [made, *(made["$defs"][name] for name in ("Sandbox", "Socket", *BUILTIN))]
    for definition in definitions:
        for key, node in definition["properties"].items():
            assert key == "type" or node.get("description"), key


@pytest.mark.parametrize("struct", [File, Sandbox, Socket])
def test_the_reference_page_has_the_keys(struct: Any) -> None:
    assert markdown(struct) in (DOCS / "device-file.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BUILTIN)
def test_each_type_has_a_page_with_its_options(name: str) -> None:
    device = load_type(name, DOCS)
    text = (DOCS / "devices" / f"{name}.md").read_text(encoding="utf-8")
    assert markdown(device.options_type, fixed_options(device)) in text
    assert f"[{name}]({name}.md)" in (DOCS / "devices" / "README.md").read_text(encoding="utf-8")
