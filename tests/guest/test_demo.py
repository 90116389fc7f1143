"""The demonstration of the README's first command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from vuproc.testing.demo.failure import DemoFailed
from vuproc.testing.demo.guest import compare
from vuproc.testing.vms import clients

pytestmark = pytest.mark.timeout(150)

DEMO = [sys.executable, "-m", "vuproc.testing.demo", "--queues", "2", "--size", "16"]


def run_demo(*options: str, **environment: str) -> str:
    done = subprocess.run(
        [*DEMO, *options],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_demo_boots_a_guest_and_the_host_finds_its_files() -> None:
    clients.user_mode_linux()
    said = run_demo()
    assert "host: e2fsck finds the file system clean" in said
    assert said.count("in the image has the guest's checksum") == 3
    assert "Everything that was written was read back the same." in said


def test_the_demo_says_why_there_is_no_guest_and_succeeds(tmp_path: Path) -> None:
    said = run_demo(VUPROC_CACHE=str(tmp_path), PATH="/nowhere")
    assert "skipped: no User-Mode Linux" in said
    assert "skipped: no " in said.split("skipped: no User-Mode Linux")[1]
    assert "Everything that was written was read back the same." in said


def test_the_demo_fails_on_an_image_without_the_files(tmp_path: Path) -> None:
    clients.mke2fs()
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(DemoFailed, match="e2fsck"):
        compare(Console(quiet=True), image, {"file1": "0" * 64})
