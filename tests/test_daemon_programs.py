"""`vuproc.Daemon` in programs of its own: what they define, how they end, and what they are busy
with.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import Guest

BOUND_S = 30.0
DEVICE = """
from vuproc import Daemon, Device, Options, Request, events

class MineOptions(Options):
    text: str = "mine"

def answer(text):
    return text.encode()

class Mine(Device):
    device_id = 42
    options_type = MineOptions

    def handle(self, request: Request) -> None:
        request.finish(request.write(answer(self.options.text)))
"""


@contextmanager
def program(folder: Path, text: str, device: str = DEVICE) -> Iterator[subprocess.Popen[str]]:
    """A program that runs as a script, with its output to be read; killed at the end."""
    path = folder / "program.py"
    path.write_text(device + textwrap.dedent(text))
    process = subprocess.Popen(
        [sys.executable, "-u", str(path)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints; "" at the end of its output."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], BOUND_S)
    assert ready, "the program says nothing"
    return process.stdout.readline().rstrip("\n")


def said(path: Path) -> str:
    """What the device answers."""
    with Guest(path) as guest:
        return guest.do(0, [], [32], timeout_s=BOUND_S).content.decode()


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


@contextmanager
def all_to_end(pid: int) -> Iterator[list[int]]:
    """All processes below `pid`; they must have ended soon after the block has."""
    pidfds = [os.pidfd_open(child) for child in descendants(pid)]
    try:
        yield descendants(pid)
        for pidfd in pidfds:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(BOUND_S * 1000), "a process outlives its program"
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def await_absence(path: Path) -> None:
    deadline = time.monotonic() + BOUND_S
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is there still"
        time.sleep(0.02)


def test_a_class_of_main_with_options_of_main(tmp_path: Path) -> None:
    text = """
        import signal
        # A shell that has started the tests in the background has them inherit SIG_IGN.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Daemon(Mine(MineOptions(text="main")), "./s") as daemon:
            print("up")
            print(daemon.wait(20))
    """
    with program(tmp_path, text) as process:
        assert line(process) == "up"
        assert said(tmp_path / "s") == "main"
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND_S) != 0, "a KeyboardInterrupt of the program's own"
    await_absence(tmp_path / "s")


def test_cells_of_a_notebook(tmp_path: Path) -> None:
    """They are run in a dictionary that is no module's, under the name __main__."""
    cells = f"""
        cells = [{DEVICE!r}, '''
        class Other(Mine):
            def handle(self, request):
                request.finish(request.write(b"cell " + answer(self.options.text)))
        ''', '''
        daemon = Daemon(Other(), "./s").start()
        print("up")
        ''', '''
        class Other(Mine):
            def handle(self, request):
                request.finish(request.write(b"edited"))
        print(daemon.reload(Other()))
        ''', '''
        input()
        ''']
        import textwrap
        space = {{"__name__": "__main__"}}
        for cell in cells[:3]:
            exec(textwrap.dedent(cell), space)
        import time
        while not __import__("os").path.exists("go"):
            time.sleep(0.01)
        exec(textwrap.dedent(cells[3]), space)
        space["daemon"].wait(20)
    """
    with program(tmp_path, cells, device="") as process:
        assert line(process) == "up"
        assert said(tmp_path / "s") == "cell mine"
        (tmp_path / "go").touch()
        assert "the object has changed" in line(process)
        deadline = time.monotonic() + BOUND_S
        while (now := said(tmp_path / "s")) != "edited":
            assert now == "cell mine" and time.monotonic() < deadline
        process.terminate()
    await_absence(tmp_path / "s")


def test_a_module_beside_the_script(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(DEVICE)
    text = """
        from beside import Daemon, Mine
        with Daemon(Mine(), "./s") as daemon:
            print("up")
            daemon.wait(20)
    """
    with program(tmp_path, text, device="") as process:
        assert line(process) == "up"
        assert said(tmp_path / "s") == "mine"
        process.terminate()


@pytest.mark.parametrize("supervised", [False, True])
def test_nothing_outlives_a_program_that_is_killed(tmp_path: Path, supervised: bool) -> None:
    text = f"""
        with Daemon(Mine(), "./s", supervised={supervised}) as daemon:
            print("up")
            daemon.wait(60)
    """
    with program(tmp_path, text) as process:
        assert line(process) == "up"
        with FrontEnd(tmp_path / "s") as front_end:
            front_end.negotiate()
            with all_to_end(process.pid) as there:
                assert len(there) >= 4 + supervised
                process.kill()
    await_absence(tmp_path / "s")
    assert sorted(os.listdir(tmp_path)) == ["program.py"]


def test_nothing_outlives_a_program_that_is_killed_while_its_device_starts(
    tmp_path: Path,
) -> None:
    text = """
        import time
        class Slow(Mine):
            def setup(self, queue):
                time.sleep(1000)
        print("starting")
        Daemon(Slow(), "./s").start(timeout=100)
    """
    with program(tmp_path, text) as process:
        assert line(process) == "starting"
        deadline = time.monotonic() + BOUND_S
        while len(descendants(process.pid)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with all_to_end(process.pid):
            process.kill()
    assert sorted(os.listdir(tmp_path)) == ["program.py"]


def test_the_end_of_the_thread_that_has_started_it_is_none_of_its_business(
    tmp_path: Path,
) -> None:
    text = """
        import threading
        daemon = Daemon(Mine(), "./s")
        thread = threading.Thread(target=daemon.start)
        thread.start()
        thread.join()
        print("up")
        daemon.wait(60)
    """
    with program(tmp_path, text) as process:
        assert line(process) == "up"
        assert said(tmp_path / "s") == "mine"
        assert said(tmp_path / "s") == "mine"


def test_a_program_that_forgets_to_stop_leaves_nothing(tmp_path: Path) -> None:
    text = """
        daemon = Daemon(Mine(), "./s", on_event=lambda event: print(type(event).__name__))
        daemon.start()
    """
    with program(tmp_path, text) as process:
        assert line(process) == "Ready"
        assert line(process) == "Stopped"
        assert process.wait(BOUND_S) == 0
    assert sorted(os.listdir(tmp_path)) == ["program.py"]


def test_a_program_that_becomes_another_ends_it(tmp_path: Path) -> None:
    text = """
        import os, sys
        Daemon(Mine(), "./s").start()
        print("up")
        sys.stdin.close()
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])
    """
    with program(tmp_path, text) as process:
        assert line(process) == "up"
        await_absence(tmp_path / "s")


BUSY = {
    "python": "while True: pass",
    "native": "while True: hash(b'x' * (1 << 28))",
    "stopped": "os.kill(os.getpid(), 19)",
}


@pytest.mark.parametrize("kind", BUSY)
def test_a_busy_program_delays_no_front_end(tmp_path: Path, kind: str) -> None:
    text = f"""
        import os
        daemon = Daemon(Mine(), "./s", on_event=lambda event: None).start()
        print("up")
        {BUSY[kind]}
    """
    with program(tmp_path, text) as process:
        assert line(process) == "up"
        begun = time.monotonic()
        for _ in range(200):  # more events than anybody keeps for it
            with FrontEnd(tmp_path / "s") as front_end:
                front_end.negotiate()
        assert said(tmp_path / "s") == "mine"
        assert time.monotonic() - begun < BOUND_S
        with all_to_end(process.pid):
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_serve_ends_by_a_signal_with_an_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    text = """
        import sys
        def told(event):
            print(event, flush=True)
        sys.exit(Daemon(Mine(), "./s", on_event=told).serve())
    """
    with program(tmp_path, text) as process:
        assert line(process) == "serving Mine, 1 queue in 1 worker"
        assert said(tmp_path / "s") == "mine"
        process.send_signal(number)
        assert process.wait(BOUND_S) == 0
    assert sorted(os.listdir(tmp_path)) == ["program.py"]


def test_serve_says_what_keeps_it_from_starting(tmp_path: Path) -> None:
    text = """
        import os, sys
        os.dup2(1, 2)
        class Wrong(Mine):
            def setup(self, queue):
                raise OSError(19, "no such card")
        sys.exit(Daemon(Wrong(), "./s").serve())
    """
    with program(tmp_path, text) as process:
        assert line(process).startswith("vuproc s: ERROR: ")
        assert process.wait(BOUND_S) == 1
    assert sorted(os.listdir(tmp_path)) == ["program.py"]


def test_asyncio(tmp_path: Path) -> None:
    text = """
        import asyncio
        async def main():
            beats = 0
            async def beat():
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0.005)
            task = asyncio.create_task(beat())
            async with Daemon(Mine(), "./s") as daemon:
                print((await daemon.status_async()).device)
                assert await daemon.wait_async(0.05) is None
                try:
                    await asyncio.wait_for(daemon.wait_async(), 0.05)
                except asyncio.TimeoutError:
                    print("cancelled")
                print(await daemon.reload_async(Mine(MineOptions(text="other"))))
                waiting = asyncio.create_task(daemon.wait_async())
                await asyncio.sleep(0)
                await daemon.stop_async()
                print((await waiting).reason)
            print(beats > 10)
            task.cancel()
        asyncio.run(main())
    """
    with program(tmp_path, text) as process:
        assert line(process) == "Mine"
        assert line(process) == "cancelled"
        assert "takes effect with the next front-end" in line(process)
        assert line(process) == "it was asked to stop"
        assert line(process) == "True"
        assert process.wait(BOUND_S) == 0
