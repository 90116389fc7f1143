"""Clocks that jump, of the device's processes alone: a library that is preloaded into them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

_OFFSETS = struct.Struct("<qq")
_SOURCE = Path(__file__).with_suffix(".c")
_BUILD_TIMEOUT_S = 120
NS = 1_000_000_000


class Clock:
    """The offsets of the clocks of whatever is started with `environment`, in nanoseconds.

    `without`: why there is none, in words.
    """

    def __init__(self, folder: Path) -> None:
        self.without = None if shutil.which("cc") else "no C compiler"
        self.environment: dict[str, str] = {}
        self._wall = self._monotonic = 0
        if self.without is not None:
            return
        library, self._file = folder / "clock.so", folder / "clock"
        command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(
            [*command, "-o", str(library), str(_SOURCE), "-ldl"],
            check=True,
            timeout=_BUILD_TIMEOUT_S,
        )
        self._file.write_bytes(_OFFSETS.pack(0, 0))
        self.environment = {"LD_PRELOAD": str(library), "SOAK_CLOCK": str(self._file)}

    def set_wall(self, offset_s: float) -> None:
        """The wall clock goes wrong by so much from now on."""
        self._wall = int(offset_s * NS)
        self._write()

    def advance(self, seconds: float) -> None:
        """Every clock goes forward at once, as after a host was suspended."""
        self._monotonic += int(seconds * NS)
        self._write()

    def _write(self) -> None:
        # In place: the file is mapped. Both words are stored by one write.
        file = os.open(self._file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(file, _OFFSETS.pack(self._wall, self._monotonic), 0)
        finally:
            os.close(file)
