"""The master's own sandbox: it, its forkserver and whatever they start lack the same; an upgrade
and a reload that begins anew keep it, once.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.field.running import VUPROC, children, environment, run_to_end, started, stop, wait_until
from vuproc.ops.admin import Request, ask
from vuproc.sandbox.master_lock import is_filtered
from vuproc.spec.system_calls import numbers


def in_a_fork(check: str) -> str:
    """What a Python of its own prints, which has locked itself as a master does."""
    program = f"from vuproc.sandbox.master_lock import *\nprint(lock_master())\n{check}"
    done = run_to_end([VUPROC[0], "-c", program])
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_it_is_locked_once_and_knows_that() -> None:
    assert not is_filtered()
    said = in_a_fork("print(is_filtered(), lock_master())\nprint(open('/proc/self/status').read())")
    assert said.startswith("[]\nTrue []\n")
    assert "Seccomp_filters:\t1\n" in said
    assert "NoNewPrivs:\t1\n" in said


def test_strange_calls_fail_in_it_and_what_it_does_works() -> None:
    calls = {name: numbers()[name] for name in ("ptrace", "mount", "bpf", "kexec_load")}
    said = in_a_fork(
        "import socket, subprocess, sys\n"
        f"for name, number in {calls!r}.items():\n"
        "    try: kernel.call(number, 0); print(name, 'made')\n"
        "    except PermissionError: print(name, 'refused')\n"
        "socket.socket().close()\n"
        "subprocess.run([sys.executable, '-c', 'print(1)'], check=True)\n"
    )
    assert "made" not in said
    assert said.count("refused") == len(calls)
    assert said.endswith("1\n") or "\n1\n" in said


def test_master_and_forkserver_have_it_over_an_upgrade(tmp_path: Path) -> None:
    file, socket = tmp_path / "rng.yaml", tmp_path / "rng.sock"
    file.write_text(f"socket: {socket}\ndevice: {{type: rng}}\n")
    with started([*VUPROC, "run", file], env=environment()) as process:
        wait_until(lambda: socket.exists() or process.poll() is not None, process)
        began = ask(socket, Request("status"))["started"]
        for pid in (process.pid, *children(process.pid)):
            assert _field(pid, "NoNewPrivs") == "1"
            assert _field(pid, "Seccomp_filters") == "1"
        os.kill(process.pid, signal.SIGUSR2)
        wait_until(lambda: _status(socket).get("started", began) != began, process)
        for pid in (process.pid, *children(process.pid)):
            assert _field(pid, "Seccomp_filters") == "1"
        code, _ = stop(process)
    assert code == 0


def _status(socket: Path) -> dict[str, object]:
    try:
        return ask(socket, Request("status"))
    except Exception:
        return {}  # it is about to become another


def _field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
