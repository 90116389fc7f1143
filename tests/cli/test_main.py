"""The command: verbs, exit codes, and what goes where."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vuproc import __version__, inquiries
from vuproc.cli import main as cli
from vuproc.cli.hint import CLIENTS
from vuproc.device_file.check import DeviceFile
from vuproc.handover.upgrade import Again

GOOD = "socket: ./disk.sock\ndevice: {type: blk, ram: 64MiB, queues: 2}\n"
BAD = "socket: ./disk.sock\ndevice: {type: blkk}\nlog_levl: info\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # `run` changes them for good.
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    (tmp_path / "disk.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DeviceFile, int | None]]:
    """What `run` would have served."""
    calls: list[tuple[DeviceFile, int | None]] = []

    def serve(file: DeviceFile, fd: int | None, again: object, **_: object) -> int:
        calls.append((file, fd))
        return 0

    monkeypatch.setattr("vuproc.serve.serve", serve)
    return calls


def usage_error(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_check_of_a_good_file(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["check", "disk.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == f"disk.yaml: ok: blk, 2 queues, 2 workers, server at {folder}/disk.sock\n"
    assert err == ""
    assert not (folder / "disk.sock").exists()


def test_check_prints_every_error_and_goes_on(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert cli.main(["check", "bad.yaml", "disk.yaml", "gone.yaml"]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "bad.yaml:2:16: type: blkk: no such device type; did you mean blk?",
        "bad.yaml:3:1: unknown key log_levl; did you mean log_level?",
        "gone.yaml: no such file or directory",
    ]
    assert out.startswith("disk.yaml: ok")
    assert not (folder / "disk.sock").exists()


def test_check_resolved_prints_yaml(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["check", "--resolved", "disk.yaml"]) == 0
    (folder / "again.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["check", "again.yaml"]) == 0


def test_run_serves_what_the_file_says(
    served: list[tuple[DeviceFile, int | None]], folder: Path
) -> None:
    assert cli.main(["run", "disk.yaml"]) == 0
    ((file, fd),) = served
    assert (file.socket.path, file.keys.log_level, fd) == (f"{folder}/disk.sock", "info", None)


def test_run_takes_the_command_line_over_the_file(
    served: list[tuple[DeviceFile, int | None]], folder: Path
) -> None:
    arguments = ["run", "disk.yaml", "--socket", "other.sock", "--log-level", "debug"]
    assert cli.main(arguments) == 0
    ((file, _),) = served
    assert (file.socket.path, file.keys.log_level) == (f"{folder}/other.sock", "debug")
    assert file.socket.permissions == 0o600


def test_run_gives_the_inherited_socket_on(served: list[tuple[DeviceFile, int | None]]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        assert cli.main(["run", "disk.yaml", "--fd", str(listener.fileno())]) == 0
        assert served[0][1] == listener.fileno()
        os.fstat(listener.fileno())  # still open: looking at it did not close it


def test_run_checks_the_file_first(
    served: list[tuple[DeviceFile, int | None]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What this process has asked for in vain before has nothing to do with it.
    monkeypatch.setattr(inquiries.manner, "without", 7)
    assert cli.main(["run", "bad.yaml"]) == 2
    assert capsys.readouterr().err.count("bad.yaml:") == 2
    assert served == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--fd", "1000"], "--fd 1000: bad file descriptor"),
        (["--fd", "-1"], "is not the number of a descriptor"),
        (["--socket", "gone/s"], "gone does not exist"),
        (["--socket", "x" * 120], "more than 101"),
        (["--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_run_with_wrong_arguments(
    served: list[tuple[DeviceFile, int | None]],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    assert usage_error(["run", "disk.yaml", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert served == []


def test_run_refuses_a_descriptor_that_is_no_unix_stream(
    served: list[tuple[DeviceFile, int | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        for number in (reading, datagrams.fileno()):
            assert usage_error(["run", "disk.yaml", "--fd", str(number)]) == 2
    os.close(reading)
    os.close(writing)
    assert "not a socket" in capsys.readouterr().err
    assert served == []


@pytest.mark.parametrize("words", [[], ["--no-standby"]])
def test_a_standby_master_is_wanted_unless_it_is_said(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the masters to come."""
    seen: list[object] = []

    def serve(_file: DeviceFile, _fd: int | None, again: Again, **options: object) -> int:
        seen.append((options["standby"], "--no-standby" in again.run))
        return 0

    monkeypatch.setattr("vuproc.serve.serve", serve)
    assert cli.main(["run", "disk.yaml", *words]) == 0
    assert seen == [(not words, bool(words))]


def test_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vuproc.serve.serve", interrupted)
    assert cli.main(["run", "disk.yaml"]) == 130
    assert capsys.readouterr().err == ""


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"].endswith("2020-12/schema")


def test_devices_lists_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    assert "blk " in capsys.readouterr().out


def test_devices_describes_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "blk"]) == 0
    out = capsys.readouterr().out
    assert "queue_size: power of two, 2 to 32768; default 256" in out
    assert "ram: size, 512 to 16TiB" in out


def test_devices_describes_an_author_s(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "toy.py").write_text(
        "from vuproc import Device\n"
        "class Toy(Device):\n    '''A toy.'''\n    device_id = 42\n"
        "    def handle(self, request): pass\n"
    )
    assert cli.main(["devices", "./toy.py:Toy"]) == 0
    assert "(virtio device id 42)\n\nA toy." in capsys.readouterr().out
    assert cli.main(["devices", "blkk"]) == 2
    assert "did you mean blk?" in capsys.readouterr().err


def test_hint(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["hint", "qemu", "disk.yaml", "--memory", "512M"]) == 0
    out = capsys.readouterr().out
    assert f"path={folder}/disk.sock" in out
    assert "size=512M,share=on" in out
    assert cli.main(["hint", "qemu", "bad.yaml"]) == 2
    assert usage_error(["hint", "qemu", "disk.yaml", "--memory", "much"]) == 2


def test_hint_for_a_client_that_cannot(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "disk.yaml").write_text(GOOD.replace("./disk.sock", "{path: s, mode: client}"))
    assert cli.main(["hint", "crosvm", "disk.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vuproc: crosvm connects to a listening device")


def test_hint_knows_every_client() -> None:
    assert set(cli.CLIENTS) == set(CLIENTS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(["--version"]) == 0
    assert capsys.readouterr().out == f"vuproc {__version__}\n"


@pytest.mark.parametrize("verb", [None, "run", "check", "schema", "devices", "hint"])
def test_help_tells_exit_codes_and_examples(
    capsys: pytest.CaptureFixture[str], verb: str | None
) -> None:
    assert usage_error([verb, "--help"] if verb else ["--help"]) == 0
    out = capsys.readouterr().out
    assert "exit codes:\n  0  ok" in out
    assert "vuproc" in out.partition("exit codes:")[0].partition("\n\n")[2]
    assert max(len(line) for line in out.splitlines()) <= 100


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["run"], ["hint", "bochs", "disk.yaml"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(arguments) == 2
    assert "usage: vuproc" in capsys.readouterr().err


def test_reader_that_leaves_early_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vuproc", "schema"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=30,
        check=False,
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1
