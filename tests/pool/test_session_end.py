"""The end of a session reaches whoever serves the queues next, when nobody was there to hear it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta

from vuproc import Device, FilePath, Options, Request
from vuproc.testing import serve

pytestmark = pytest.mark.timeout(90)


class LateOptions(Options, kw_only=True):
    gate: Annotated[FilePath, Meta(description="A named pipe: a successor waits for its writer.")]


class Late(Device):
    """Takes its time to follow another worker."""

    device_id = 42
    options_type = LateOptions
    options: LateOptions

    def setup(self, queue: int) -> None:
        if self.recovered:
            self.log.info("waits")
            with open(self.options.gate, "rb"):
                self.log.info("is there")

    def handle(self, request: Request) -> None:
        request.write(b"done")

    def reset(self) -> None:
        self.log.info("has forgotten")


def test_a_worker_that_was_setting_up_is_told_first(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with serve(Late, gate=str(gate)) as served:
        with served.guest() as guest:
            assert guest.do(in_=[4]).content == b"done"
            served.kill_worker()
            served.wait_for_line("waits")
            before = len(served.lines)
        # The one that waits has heard of rings already, and is replaced; so must the next hear.
        served.wait_for_line("waits", after=before)
        with open(gate, "wb"):
            served.wait_for_line("has forgotten", after=before)
        with served.guest() as guest:
            assert guest.do(in_=[4]).content == b"done"


def test_a_master_without_a_session_tells_its_workers(tmp_path: Path) -> None:
    with serve(Late, gate="/dev/null", arguments=["--supervised"]) as served:
        with served.guest() as guest:
            assert guest.do(in_=[4]).content == b"done"
        served.wait_for_line("has forgotten")
        before = len(served.lines)
        os.kill(served.status().pid, signal.SIGKILL)
        served.wait_for_line("has forgotten", after=before)
        with served.guest() as guest:
            assert guest.do(in_=[4]).content == b"done"
