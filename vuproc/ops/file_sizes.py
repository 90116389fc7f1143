"""Sizes of a device's files as the kernel knows them, without a question to a server far away.

fstat(2) of a file of NFS whose server is gone does not return; statx(2) can be told not to ask.
"""

from __future__ import annotations

import ctypes
import stat
import struct
from collections import Counter
from collections.abc import Mapping

from vuproc.fd import Fd
from vuproc.ops.metric_table import FileSize

_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE, _STATX_SIZE, _STATX_BLOCKS = 0x1, 0x200, 0x400
_WANTED = _STATX_TYPE | _STATX_SIZE | _STATX_BLOCKS
_STATX = struct.Struct("=I24xH10xQQ")
"""The mask, the mode, the size and the blocks of struct statx (statx(2))."""
_STATX_BYTES = 256
_BLOCK = 512
_LIBRARY = ctypes.CDLL(None)


def file_sizes(files: Mapping[str, Fd]) -> tuple[FileSize, ...]:
    """Those of the regular files among `files`; none if the C library lacks statx.

    Their names are what stands before the first dot of those in `files`, if that is of one alone:
    an image has its options behind it.
    """
    statx = getattr(_LIBRARY, "statx", None)
    found = []
    short = Counter(name.partition(".")[0] for name in files)
    for name, fd in sorted(files.items()):
        buffer = ctypes.create_string_buffer(_STATX_BYTES)
        flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
        if statx is None or statx(fd.fileno(), b"", flags, _WANTED, buffer) != 0:
            continue
        mask, mode, size, blocks = _STATX.unpack_from(buffer)
        if mask & _WANTED == _WANTED and stat.S_ISREG(mode):
            first = name.partition(".")[0]
            shown = first if short[first] == 1 else name
            found.append(FileSize(shown, size, blocks * _BLOCK))
    return tuple(found)
