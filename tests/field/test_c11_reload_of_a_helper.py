"""`vuproc reload` after a module beside the device's file has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vuproc.ops.admin import Request, ask
from vuproc.testing.serve import Served, serve

BOUND_S = 60.0
# Names of their own: what other tests have made importable is on the path of the served process.
DEVICE = """\
from vuproc import Device
import c11_answers


class Echo(Device):
    device_id = 45

    def config_space(self):
        return c11_answers.GREETING

    def handle(self, request):
        request.write(c11_answers.GREETING)
"""


def reload(served: Served) -> list[str]:
    lines: list[str] = ask(served.socket, Request("reload"), BOUND_S)["lines"]
    return lines


@pytest.mark.parametrize("ref", ["./c11_echo.py:Echo", "c11_echo:Echo"])
def test_c11_new_workers_have_the_new_helper(tmp_path: Path, ref: str) -> None:
    helper, file = tmp_path / "c11_answers.py", tmp_path / "echo.yaml"
    (tmp_path / "c11_echo.py").write_text(DEVICE)
    helper.write_text("GREETING = b'one'\n")
    file.write_text(f"socket: ./echo.sock\ndevice: {{type: '{ref}', queues: 2}}\n")
    with serve(file) as served, served.guest(queues=2, timeout_s=BOUND_S) as guest:
        channel = guest.front_end.open_channel()
        assert guest.do(1, in_=[8]).content == b"one"
        assert reload(served)[0].endswith("nothing has changed")
        # As long as before, and perhaps within the same second.
        helper.write_text("GREETING = b'two'\n")
        (line,) = reload(served)
        assert line.endswith(
            "device.type: its code has changed: applied by new workers, one queue at a time"
        )
        served.wait_for_line("every worker is new", BOUND_S)
        assert {guest.do(queue, in_=[8]).content for queue in (0, 1)} == {b"two"}
        # The master has it as well: the driver is told of a changed configuration space.
        assert channel.receive(BOUND_S) is not None
        assert guest.front_end.get_config(0, 3) == b"two"
