"""A disk whose server is far away, and not there when it is wanted."""

from __future__ import annotations

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.devices.nbd_server import Server
from tests.field.events import wait_until
from tests.field.running import BOUND_S, VUPROC, run_to_end, started, stop
from vuproc import inquiries
from vuproc.cli.arguments import EXIT_FAILED
from vuproc.cli.main import main
from vuproc.devices import nbd_question
from vuproc.inquiries import AWAY, Inquiry, Manner
from vuproc.testing.block import Block
from vuproc.testing.errors import ServeFailed
from vuproc.testing.serve import serve

SIZE = 1 << 20


def write(path: Path, uri: str, **options: Any) -> Path:
    device = {"type": "blk", "nbd": uri, **options}
    path.write_text(json.dumps({"socket": "./disk.sock", "device": device}))
    return path


@pytest.fixture
def manner(monkeypatch: pytest.MonkeyPatch) -> Manner:
    """How this process waits, for the time of a test."""
    manner = Manner()
    monkeypatch.setattr(inquiries, "manner", manner)
    return manner


def test_b9_a_start_waits_for_a_server_that_comes_later_and_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path / "nbd.sock", SIZE)
    file = write(tmp_path / "disk.yaml", server.uri)
    with started([*VUPROC, "run", file]) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith(f"vuproc: no answer yet from export 'disk' at {server.path}")
        assert not (tmp_path / "disk.sock").exists()
        server.start()
        try:
            wait_until((tmp_path / "disk.sock").exists, "a socket")
            assert stop(process)[0] == 0
        finally:
            server.stop()


@pytest.mark.parametrize(("size", "code"), [(256, EXIT_FAILED), (3, 2)])
def test_b9_a_server_that_stays_away_is_no_fault_of_the_device_file(
    tmp_path: Path,
    manner: Manner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    size: int,
    code: int,
) -> None:
    """So that a service manager tries again, which it does not with what is wrong for good."""
    monkeypatch.setattr(nbd_question, "ASK_S", 1.2)
    file = write(tmp_path / "disk.yaml", f"nbd+unix:///?socket={tmp_path}/none", queue_size=size)
    assert main(["run", str(file)]) == code
    assert "queue_size" in capsys.readouterr().err if size == 3 else manner.without == 1


def test_b9_a_check_does_not_wait_for_a_server_that_is_not_there(tmp_path: Path) -> None:
    file = write(tmp_path / "disk.yaml", f"nbd+unix:///?socket={tmp_path}/none")
    done = run_to_end([*VUPROC, "check", file])
    assert done.returncode == 2
    # On a slow machine it is said before that it takes long.
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{file}:1:") and last.endswith("No such file or directory")


def test_b9_who_is_not_there_is_asked_again_by_a_start_alone(
    tmp_path: Path, manner: Manner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiries, "AGAIN_S", 0.01)
    monkeypatch.setattr(inquiries, "NOTICE_S", 0.0)
    log = tmp_path / "asked"
    script = f'echo >>"{log}"; [ $(wc -l <"{log}") = 3 ] && echo here || exit {AWAY}'
    inquiry = Inquiry(("sh", "-c", script), BOUND_S, "a server")
    answer = inquiries.ask(inquiry)
    assert (answer.code, answer.away, manner.without) == (AWAY, True, 1)
    noticed: list[Inquiry] = []
    manner.patient = manner.keeps = True
    manner.notice = noticed.append
    assert inquiries.ask(inquiry).output == b"here\n"
    assert (manner.without, noticed) == (1, [inquiry])
    # What it was checked by it is served by, and asked once more for what follows.
    assert inquiries.ask(inquiry).output == b"here\n"
    manner.patient = False
    manner.known.clear()
    assert inquiries.ask(inquiry).code == AWAY
    assert inquiries.ask(Inquiry(("false",), BOUND_S)).code == 1


def test_b9_nothing_waits_while_a_reload_waits_for_a_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "nbd.sock", SIZE)
    file = write(tmp_path / "disk.yaml", server.uri)
    server.start()
    try:
        with serve(file) as served, served.guest() as guest:
            Block(guest).write(8, b"x" * 512)
            silent = tmp_path / "silent.sock"
            with socket.socket(socket.AF_UNIX) as nobody, ThreadPoolExecutor(1) as pool:
                nobody.bind(str(silent))
                nobody.listen()
                write(file, f"nbd+unix:///?socket={silent}")
                reload = pool.submit(served.reload)
                connected, _ = nobody.accept()
                # Whoever asks has connected, and hears nothing.
                with connected:
                    assert len(guest.config(size=8)) == 8
                    assert served.status().connected
                    assert Block(guest).read(8, 512) == b"x" * 512
                    assert not reload.done()
                with pytest.raises(ServeFailed, match="hung up in the handshake"):
                    reload.result(BOUND_S)
    finally:
        server.stop()


def test_b9_the_question_is_a_program_of_its_own(tmp_path: Path) -> None:
    program = [sys.executable, "-P", "-m", "vuproc.devices.nbd_question"]
    away = run_to_end([*program, f"nbd+unix:///?socket={tmp_path}/none"])
    assert (away.returncode, away.stderr) == (AWAY, "No such file or directory\n")
