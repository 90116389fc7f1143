"""The program of a daemon's master process: serves what the program wants that has started it.

Its descriptors come by name: those of the first start as arguments (`program=5`), later ones, from
a keeper or from the program that this process was before, as a service manager hands them over.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence

from vuproc import inquiries, texts
from vuproc.cli import streams
from vuproc.cli.arguments import EXIT_USAGE
from vuproc.cli.main import main
from vuproc.device_file.check import DeviceFile
from vuproc.errors import ConfigErrors, DeviceWrong
from vuproc.fd import Fd
from vuproc.handover.fd_store import DEVICE_FILE, content_of
from vuproc.handover.sd_notify import InheritError, inherit
from vuproc.handover.upgrade import Again
from vuproc.program import start
from vuproc.program.life import end_with
from vuproc.program.link import ProgramLink
from vuproc.program.messages import GIVEN, LIFE, PROGRAM, START
from vuproc.program.refusals import refusal_of
from vuproc.program.start import AnyStart, FileStart, ObjectStart
from vuproc.serve import EXIT_FAILURE, serve
from vuproc.warm_start import WarmStart, wait_for_turn

CHECK = "check"
"""The argument that is followed by what `vuproc check` takes."""

Left = dict[str, tuple[Fd, ...]]


def run(warm: WarmStart | None = None) -> int:
    """Serve until the end; returns the exit code of this process.

    `warm`: this process is a fork that was prepared for that, and has its descriptors.
    """
    streams.open_closed()
    # A program may have its children reaped by the kernel; workers are waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words = sys.argv[1:]
    if words[:1] == [CHECK]:
        return main(words)
    try:
        if warm is None and not words:
            warm = wait_for_turn()
        if warm is not None:
            left = warm.left
        else:
            left = _handed(words) if words else inherit()
        channel, life, file = (left.pop(name)[0] for name in (PROGRAM, LIFE, START))
        wanted, content = start.read(file)
        file.close()
        in_force = content_of(left, DEVICE_FILE)
        if in_force and isinstance(wanted, ObjectStart):
            # A reload has changed it since: for a master that has died, what was in force goes on.
            wanted, content = start.decode(in_force), in_force
    except (InheritError, KeyError, OSError, ValueError) as error:
        print(f"vuproc: not the start of a daemon: {texts.described(error)}", file=sys.stderr)
        return EXIT_FAILURE
    end_with(life, channel)
    link = ProgramLink(channel, life, wanted, content)
    try:
        return _serve(link, wanted, in_force, left, warm)
    finally:
        link.end()


def _serve(
    link: ProgramLink, wanted: AnyStart, in_force: bytes, left: Left, warm: WarmStart | None
) -> int:
    try:
        file = link.described() if isinstance(wanted, ObjectStart) else _loaded(wanted, in_force)
        given = left.pop(GIVEN, ())
        number = given[0].take() if given else None
        return serve(
            file,
            number,
            _again(wanted, link),
            program=link,
            left=left,
            forkserver=None if warm is None else warm.forkserver,
            standby=wanted.standby,
        )
    except (ConfigErrors, DeviceWrong) as error:
        print(error, file=sys.stderr)
        link.refuse(refusal_of(error))
        return EXIT_USAGE


def _loaded(wanted: FileStart, in_force: bytes) -> DeviceFile:
    """The device file: as it was in force for a master that has died, if there was one."""
    if in_force:
        with contextlib.suppress(ConfigErrors):
            return wanted.load(in_force, look=False)
    with inquiries.for_a_start(patient=False):
        return wanted.load()


def _again(wanted: AnyStart, link: ProgramLink) -> Again:
    """How to begin anew in this process; what a program has made can be no other by that."""
    words = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    command = (sys.executable, *words)
    if isinstance(wanted, FileStart):
        return Again(command, (*command, CHECK, wanted.path), wanted.load)
    return Again(command, (), link.described)


def _handed(words: Sequence[str]) -> Left:
    """The descriptors that are named so: `name=number`."""
    pairs = (word.partition("=") for word in words)
    return {name: (Fd(int(number)),) for name, _, number in pairs}
