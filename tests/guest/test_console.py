"""A virtio console written by an author, and Linux's driver for it: receive buffers that the device
pulls, and a configuration space that changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.guest.console import Console
from vuproc.testing import serve
from vuproc.testing.vms import boot_uml

pytestmark = pytest.mark.timeout(120)

SCRIPT = """
exec 3<>/dev/hvc0
stty raw -echo <&3
echo hello there >&3
read -r answer <&3
say answer $answer
say ready yes
read -r typed <&3
say typed $typed
for number in 1 2 3 4 5 6 7 8 9 10; do
    echo line $number >&3
    read -r answer <&3
    say line$number $answer
done
echo size 132 50 >&3
tries=0
until [ "$(stty size <&3)" = "50 132" ] || [ $tries -ge 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
say size $(stty size <&3)
"""


@pytest.mark.proves("BACKEND_CONFIG_CHANGE_MSG", front_end="User-Mode Linux 6.1")
def test_a_guest_reads_and_writes_and_sees_the_windows_size(
    tmp_path: Path, shown: Callable[[Iterable[str]], None]
) -> None:
    pipe = tmp_path / "typed"
    os.mkfifo(pipe)
    verbose = {"log_level": "debug"}
    with (
        serve(Console, typed=str(pipe), file=verbose) as served,
        open(pipe, "r+b", buffering=0) as typed,
    ):
        devices = {served.socket: Console.device_id}
        with boot_uml(devices, script=SCRIPT, modules=("virtio_console",)) as guest:
            guest.wait_for("ready")
            # The driver's buffers are with the next worker, which is the one to write to them.
            killed = served.kill_worker()
            served.wait_worker(other_than=killed)
            typed.write(b"after a death\n")
            said = guest.finish().values
    # It reads the size when that changes, and not before.
    assert said["size"] == "50 132"
    assert (said["answer"], said["typed"]) == ("HELLO THERE", "after a death")
    assert [said[f"line{n}"] for n in range(1, 11)] == [f"LINE {n}" for n in range(1, 11)]
    assert not [line for line in served.lines if "ERROR" in line]
    shown(served.lines)
