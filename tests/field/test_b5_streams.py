"""Standard input, output or error that is closed, or that nobody reads any more."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.field.running import (
    VUPROC,
    await_made,
    descendants,
    run_to_end,
    started,
    stop,
    write_file,
)
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest


def closing(redirections: str) -> list[str]:
    """What goes before a command that is to be started so."""
    return ["sh", "-c", f'exec "$@" {redirections}', "sh"]


@pytest.mark.parametrize(
    ("redirections", "supervised"),
    [
        ("<&-", []),
        (">&-", []),
        ("2>&-", []),
        ("<&- >&- 2>&-", []),
        ("<&- >&- 2>&-", ["--supervised"]),
    ],
)
def test_b5_closed_streams_are_like_dev_null(
    tmp_path: Path, redirections: str, supervised: list[str]
) -> None:
    file, socket = write_file(tmp_path), tmp_path / "disk.sock"
    command = [*closing(redirections), *VUPROC, "run", *supervised, file]
    with started(command, stdout=subprocess.PIPE) as process:
        await_made(socket, process)
        with Guest(socket) as guest:
            Block(guest).read(0, 512)
        for pid in [process.pid, *descendants(process.pid)]:
            names = [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]
            assert all(name == "/dev/null" or name.startswith("pipe:") for name in names), names
        code, said = stop(process)
    assert (code, "Traceback" in said) == (0, False), said
    assert sorted(os.listdir(tmp_path)) == ["disk.yaml"]


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_b5_a_check_is_no_failure_for_want_of_an_output(tmp_path: Path, redirections: str) -> None:
    done = run_to_end([*closing(redirections), *VUPROC, "check", write_file(tmp_path)])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("supervised", [[], ["--supervised"]], ids=["alone", "supervised"])
def test_b5_a_log_that_nobody_reads_any_more_is_no_error(
    tmp_path: Path, supervised: list[str]
) -> None:
    file, socket = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", *supervised, file]) as process:
        await_made(socket, process)
        assert process.stderr is not None
        process.stderr.close()
        with Guest(socket) as guest:
            Block(guest).read(0, 512)
        process.stderr = None
        assert stop(process)[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["disk.yaml"]
