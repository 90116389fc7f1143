"""Which shared libraries a program needs, so that it can be taken along into a guest."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

from vuproc.testing.vms.errors import ClientMissing

ELF64_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
ELF64_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
PT_INTERP = 3
LIST_TIMEOUT_S = 10.0


def interpreter(program: Path) -> Path | None:
    """The dynamic loader that an ELF program asks for; None for a static one."""
    data = program.read_bytes()
    if len(data) < ELF64_HEADER.size or data[:5] != b"\x7fELF\x02":
        raise ClientMissing(program.name, f"{program} is not a 64-bit ELF program")
    header = ELF64_HEADER.unpack_from(data)
    offset, size, count = header[5], header[9], header[10]
    for index in range(count):
        kind, _, start, _, _, length, _, _ = ELF64_PROGRAM_HEADER.unpack_from(
            data, offset + index * size
        )
        if kind == PT_INTERP:
            return Path(data[start : start + length].rstrip(b"\0").decode())
    return None


def with_libraries(program: Path) -> list[Path]:
    """The program, its dynamic loader and every library that the loader would map for it."""
    loader = interpreter(program)
    if loader is None:
        return [program]
    listing = subprocess.run(
        [loader, "--list", program],
        capture_output=True,
        text=True,
        timeout=LIST_TIMEOUT_S,
        check=False,
    )
    if listing.returncode != 0:
        raise ClientMissing(program.name, f"its libraries cannot be listed: {listing.stderr}")
    libraries = re.findall(r"=> (/\S+)", listing.stdout)
    return [program, loader, *(Path(library) for library in libraries if library != str(loader))]
