"""Starts the process that serves a daemon's device: the master, or the keeper of one.

It is a fresh interpreter and no fork of the program, which may have threads. It begins in `/`, in a
process group of its own, so that a terminal's Ctrl-C is the program's alone, and finds modules
where the program does.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import vuproc
from vuproc.fd import Fd, HasFileno
from vuproc.handover import keeper
from vuproc.handover.keeper.processes import OF_THE_SERVICE, PASSED_ON

_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from importlib import util
spec = util.spec_from_file_location("vuproc", {package!r})
sys.modules["vuproc"] = package = util.module_from_spec(spec)
spec.loader.exec_module(package)
from vuproc.program import entry
sys.exit(entry.run())
"""
"""The package is named by its file: another of that name may be found first."""
_FIRST_FREE = 3
"""Above standard input, output and error, which the program may have closed."""


def launched(
    given: Mapping[str, HasFileno], *, supervised: bool, output: HasFileno | None
) -> subprocess.Popen[bytes]:
    """Start it with copies of these descriptors, by name. Raises OSError.

    `output`: where its standard output and standard error go, None: where the program's do.
    """
    command = master_command()
    copies = {name: _copy(file) for name, file in given.items()}
    try:
        words = [f"{name}={copy.fileno()}" for name, copy in copies.items()]
        if supervised:
            handed = [part for word in words for part in ("--hand", word)]
            command = [sys.executable, "-I", "-S", keeper.PROGRAM, *handed, *command]
        else:
            command += words
        # As from a keeper: what asks for its end waits until it has handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=None if output is None else output.fileno(),
                stderr=None if output is None else output.fileno(),
                pass_fds=[copy.fileno() for copy in copies.values()],
                env={key: value for key, value in os.environ.items() if key not in OF_THE_SERVICE},
                cwd="/",
                process_group=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        for copy in copies.values():
            copy.close()


def interpreter() -> list[str]:
    """The program's own, which finds nothing in a current folder."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *(flag for flag in flags if flag != "-P"), "-P"]


def master_command() -> list[str]:
    """What starts a master, but for the names of its descriptors."""
    program = _PROGRAM.format(path=import_path(), package=os.path.abspath(vuproc.__file__))
    return [*interpreter(), "-c", program]


def _copy(file: HasFileno) -> Fd:
    return Fd(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))


def import_path() -> list[str]:
    """The program's own, as it would be from `/`. An entry "" is the current folder."""
    return [os.path.abspath(entry) if _is_path(entry) else entry for entry in sys.path]


def _is_path(entry: str) -> bool:
    """Not what the hook of some package goes by, as that of one installed to be edited."""
    return os.path.exists(entry or ".")
