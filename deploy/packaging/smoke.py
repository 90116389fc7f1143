"""Whether an installed vuproc works: serves a disk and random bytes, and is their driver.

    PYTHON smoke.py [FOLDER]

FOLDER has the programs `vuproc` and `vuproc-rng`; the usual is that of the running Python. It needs
nothing but the package: a package's own test, or a wheel's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from vuproc import __version__
from vuproc.testing.guest import Guest

BOUND_S = 120.0
READY = "serving"
SECTOR = 512
IN, OUT = 0, 1


def main() -> None:
    """Exits with 1 and says why, if something is not as it should be."""
    parser = argparse.ArgumentParser(description="try an installed vuproc")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sys.executable).parent)
    options = parser.parse_args()
    said = subprocess.run(
        [options.folder / "vuproc", "--version"], stdout=subprocess.PIPE, text=True, check=True
    )
    assert said.stdout == f"vuproc {__version__}\n", said.stdout
    with tempfile.TemporaryDirectory(prefix="vuproc-smoke-") as name:
        disk(options.folder / "vuproc", Path(name), queues=2)
        random_bytes(options.folder / "vuproc-rng", Path(name) / "rng.sock")
    print(f"vuproc {__version__} of {os.path.realpath(options.folder)} works")


def disk(program: Path, folder: Path, *, queues: int) -> None:
    """A file's content is the disk's, and what is written is in the file, on each queue."""
    image = folder / "disk.raw"
    image.write_bytes(bytes(range(256)) * 4096)
    path = folder / "disk.sock"
    file = folder / "disk.yaml"
    file.write_text(
        f"socket: {path}\ndevice: {{type: blk, image: {image}, queues: {queues}, serial: smoke}}\n"
    )
    with serving([program, "run", file]), Guest(path, queues=queues) as guest:
        for queue in range(queues):
            written = bytes([queue + 1]) * SECTOR
            done = guest.do(queue, [header(OUT, queue), written], [1])
            assert done.content == b"\0", done
            done = guest.do(queue, [header(IN, queue)], [2 * SECTOR, 1])
            expected = written + image.read_bytes()[(queue + 1) * SECTOR :][:SECTOR]
            assert done.content == expected + b"\0", done
        whole = image.read_bytes()
        assert all(
            whole[n * SECTOR : (n + 1) * SECTOR] == bytes([n + 1]) * SECTOR for n in range(queues)
        )


def random_bytes(program: Path, path: Path) -> None:
    """The program of a type works, too."""
    with serving([program, "--socket-path", path]), Guest(path) as guest:
        assert any(guest.do(in_=[64]).content)


def header(kind: int, sector: int) -> bytes:
    """virtio 1.3, 5.2.6: type, reserved, sector."""
    return kind.to_bytes(4, "little") + bytes(4) + sector.to_bytes(8, "little")


@contextmanager
def serving(command: Sequence[str | Path]) -> Iterator[None]:
    """While the program serves; it must end well at SIGTERM."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    guard = Timer(BOUND_S, process.kill)
    guard.start()
    try:
        assert process.stderr is not None
        said = ""
        while READY not in said:
            line = process.stderr.readline()
            assert line, f"{command[0]} ended: {said}"
            said += line
        yield
        process.terminate()
        rest = process.stderr.read()
        assert process.wait() == 0, said + rest
    finally:
        guard.cancel()
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
