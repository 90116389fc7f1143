"""Programs of a device type, as management software starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest

from vuproc.cli import discovery, program
from vuproc.devices import BUILTIN
from vuproc.testing.guest import Guest

# QEMU 4.0 and later: docs/interop/vhost-user.json, which is in QAPI, as JSON Schema.
QEMU_TYPE = {
    "enum": [
        *("9p", "balloon", "block", "caif", "console", "crypto", "fs", "gpu", "input", "net"),
        *("rng", "rpmsg", "rproc-serial", "scsi", "vsock"),
    ]
}
QEMU_BACKEND = {
    "type": "object",
    "properties": {
        "description": {"type": "string"},
        "type": QEMU_TYPE,
        "binary": {"type": "string", "pattern": "^/"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["description", "type", "binary"],
    "additionalProperties": False,
}
"""`VhostUserBackend`."""
QEMU_CAPABILITIES = {
    "type": "object",
    "properties": {"type": QEMU_TYPE, "features": {"type": "array"}},
    "required": ["type"],
    "additionalProperties": False,
    "allOf": [
        {
            "if": {"properties": {"type": {"const": kind}}},
            "then": {
                "properties": {"features": {"items": {"enum": features}}},
                "required": ["features"],
            },
        }
        for kind, features in {
            "block": ["read-only", "blk-file"],
            "input": ["evdev-path", "no-grab"],
            "gpu": ["render-node", "virgl"],
        }.items()
    ],
}
"""`VHostUserBackendCapabilities`; those of block are not in its union, but described beside it."""

BOUND_S = 30.0
READY = "serving"


@contextmanager
def running(
    type_name: str, arguments: Sequence[str], pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    """The program, once it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vuproc.cli.program", type_name, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if READY in line:
                break
        assert READY in said, said
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=BOUND_S)


def test_there_is_a_program_of_each_type() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name in BUILTIN:
        assert f'vuproc-{name} = "vuproc.cli.program:main"' in text


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_a_disk_is_served_at_a_path_or_an_inherited_socket(
    tmp_path: Path, by_descriptor: bool
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 16)
    path = tmp_path / "disk.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        where = ["--socket-path", str(path)]
        fds: tuple[int, ...] = ()
        if by_descriptor:
            listener.bind(str(path))
            listener.listen(1)
            where, fds = ["--fd", str(listener.fileno())], (listener.fileno(),)
        words = [*where, "--blk-file", str(image), "--read-only", "--serial", "007"]
        with running("blk", words, fds) as process:
            with Guest(path) as guest:
                done = guest.do(0, [bytes(16)], [512, 1])
                assert done.content[:512] == image.read_bytes()[:512]
                assert done.content[512] == 0
                serial = guest.do(0, [(8).to_bytes(4, "little") + bytes(12)], [20, 1])
                assert serial.content.startswith(b"007\0")
            process.send_signal(signal.SIGTERM)
            assert process.wait(BOUND_S) == 0


@pytest.mark.parametrize("name", BUILTIN)
def test_capabilities_are_one_object(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--print-capabilities"], f"/usr/bin/vuproc-{name}") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["type"] == {"blk": "block"}.get(name, name)
    expected = {"blk": ["blk-file", "read-only"], "input": ["evdev-path", "no-grab"]}
    assert told.get("features") == expected.get(name)
    if name in program.QEMU_TYPES:
        jsonschema.validate(told, QEMU_CAPABILITIES)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ([], "either --socket-path or --fd"),
        (["--fd", "3", "--socket-path", "x"], "either --socket-path or --fd"),
        (["--socket-path", "{}/s", "--ram", "zero"], "--ram: "),
        (["--socket-path", "{}/s", "--image", "{}/none"], "--image: "),
        (["--socket-path", "{}/none/s", "--ram", "1MiB"], "--socket-path: "),
    ],
)
def test_mistakes_name_their_option(
    words: list[str], wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("{}", str(tmp_path)) for word in words]
    assert program.main(given, "vuproc-blk") == 2
    assert f"vuproc-blk: {wrong}" in capsys.readouterr().err


def test_another_name_is_no_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([], "vuproc-floppy") == 2
    assert "no such type" in capsys.readouterr().err


def test_files_tell_of_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setattr(sys, "argv", [str(programs / "vuproc")])
    with pytest.raises(discovery.DiscoveryError, match="is not there"):
        list(discovery.write(tmp_path / "made"))
    for name in BUILTIN:
        file = programs / f"vuproc-{name}"
        file.touch()
        os.chmod(file, 0o755)
    paths = list(discovery.write(tmp_path / "made"))
    assert sorted(paths) == sorted((tmp_path / "made").iterdir())
    for path in paths:
        told = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.validate(told, QEMU_BACKEND)
        assert os.access(told["binary"], os.X_OK)
        assert path.name == f"50-{Path(told['binary']).name}.json"


def test_a_package_that_is_made_tells_where_the_programs_will_be(tmp_path: Path) -> None:
    words = ["discovery", "--programs", "/nowhere/bin", str(tmp_path / "made")]
    subprocess.run(
        [sys.executable, "-m", "vuproc", *words],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=BOUND_S,
    )
    told = json.loads((tmp_path / "made" / "50-vuproc-blk.json").read_text(encoding="utf-8"))
    assert told["binary"] == "/nowhere/bin/vuproc-blk"


def test_help_says_what_each_option_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"], "vuproc-blk")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Largest queue the driver may choose" in said
    assert "--image PATH" in said
