"""`vuproc run`: from the words of the command to a device that is served.

What takes long is begun first: the forkserver imports, and workers come up, while this process goes
on. What is not needed for that is not imported.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vuproc import inquiries
from vuproc.cli import invocation, many
from vuproc.cli.arguments import EXIT_FAILED, check_descriptor, usage_error
from vuproc.devices import BUILTIN, named_in
from vuproc.errors import ConfigErrors, HostLacks

if TYPE_CHECKING:
    from vuproc.device_file.check import DeviceFile
    from vuproc.handover.upgrade import Again
    from vuproc.pool.forkserver import Forkserver
    from vuproc.warm_start import WarmStart

AHEAD_BYTES = 1 << 16
"""Of a device file, in which its type is looked for."""


def run(options: argparse.Namespace) -> int:
    """`vuproc run`: serve until told to stop."""
    before = inquiries.manner.without
    try:
        return _started(options)
    except many.Away as away:
        return _away(away)
    except ConfigErrors as errors:
        if not many.only_away(errors, before):
            raise
        return _away(errors)


def _away(errors: Exception) -> int:
    """Nothing else is wrong: a keeper, or a service manager, is to try again."""
    print(errors, file=sys.stderr)
    if "VUPROC_KEEPER" not in os.environ:
        return EXIT_FAILED
    from vuproc.handover.keeper.keeper import AWAY

    return AWAY


def _started(options: argparse.Namespace) -> int:
    # Imports make no garbage that would be worth a search.
    gc.disable()
    warm = _wait_for_turn()
    if warm is not None and warm.file is not None:
        options.file = warm.file
    elif len(options.files) > 1 or os.path.isdir(options.files[0]):
        many.run(options)
    else:
        (options.file,) = options.files

    forked = warm is not None and warm.file is not None
    forkserver = _ahead(options) if warm is None else warm.forkserver
    try:
        return _run(options, warm, forkserver, forked=forked)
    finally:
        if forkserver is not None:
            forkserver.kill()
            forkserver.close()


def _run(
    options: argparse.Namespace,
    warm: WarmStart | None,
    forkserver: Forkserver | None,
    *,
    forked: bool,
) -> int:
    def wanted() -> DeviceFile:
        return _of_the_last_master(options, warm) or _load(options)

    read = many.read_apart(wanted) if forked else None
    # Who keeps many devices tries each again, and no others wait for it.
    with inquiries.for_a_start(patient=not forked):
        file = read or wanted()
    if options.fd is not None:
        check_descriptor(options.fd)
        if options.supervised:
            usage_error("--fd and --supervised exclude each other")
    again = _again(options, file)
    # The folder may be removed, and a file system in use cannot be unmounted.
    invocation.leave_folder()
    if options.supervised and not forked:
        _supervise(again.run)
    if forkserver is not None and warm is None:
        _order_workers(forkserver, file)
    from vuproc.serve import serve

    gc.enable()
    return serve(
        file,
        options.fd,
        again,
        left=None if warm is None else warm.left,
        forkserver=forkserver,
        standby=not options.no_standby,
        checked=read is not None,
        worker_waits=options.standby or read is None,
    )


def _ahead(options: argparse.Namespace) -> Forkserver | None:
    """The forkserver of a built-in type, started before all else: it imports while we do."""
    from vuproc.pool.forkserver import CannotStart, Forkserver

    if options.supervised:
        return None  # we are to be the keeper
    try:
        with open(options.file, "rb") as file:
            content = file.read(AHEAD_BYTES)
    except OSError:
        return None  # it is said when it is read
    types = [BUILTIN[name] for name in named_in(content)]
    if not types:
        return None  # what is to be imported is known later
    forkserver = Forkserver(types)
    try:
        forkserver.begin()
    except CannotStart:
        return None  # it is tried again, and said then
    return forkserver


def _order_workers(forkserver: Forkserver, file: DeviceFile) -> None:
    """Have the workers, and the one in waiting, forked while we import what serves them."""
    from vuproc import open_files

    try:
        open_files.make_room(sum(map(len, file.workers)))
    except HostLacks:
        return  # it is said when they are started
    forkserver.allow_files()
    forkserver.locked = file.keys.sandboxed().mode != "off"
    forkserver.order(len(file.workers) + 1)


def _wait_for_turn() -> WarmStart | None:
    """As `warm_start.wait_for_turn`, of which nothing is imported unless it is needed."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if names == [""]:
        return None  # nobody has started us with anything
    from vuproc.handover.keeper import shared_forkserver, standby

    if shared_forkserver.NAME in names:
        invocation.leave_folder()
        return many.wait_for_order()
    if standby.NAME not in names:
        return None
    from vuproc.warm_start import wait_for_turn

    invocation.leave_folder()
    return wait_for_turn()


def _again(options: argparse.Namespace, file: DeviceFile) -> Again:
    """How to do the same once more, from any folder."""
    from vuproc.handover.upgrade import Again

    options.file = str(file.path)
    words = ["run", options.file]
    if options.socket is not None:
        options.socket = os.path.abspath(options.socket)
        words += ["--socket", options.socket]
    if options.log_level is not None:
        words += ["--log-level", options.log_level]
    if options.no_standby:
        words.append("--no-standby")
    program = invocation.program()
    return Again(
        run=(*program, *words),
        check=(*program, "check", options.file),
        load=lambda: _load(options),
    )


def _supervise(command: Sequence[str]) -> None:
    """Become the keeper of this command; does not return."""
    from vuproc.handover.keeper import PROGRAM

    os.execv(sys.executable, [sys.executable, "-I", "-S", PROGRAM, *command])


def _of_the_last_master(options: argparse.Namespace, warm: WarmStart | None) -> DeviceFile | None:
    """The device file as the master had it that has died: nobody has asked for what it says by now.

    None if there was no such master, or if it is of no use any more.
    """
    from vuproc.device_file.yaml_text import MAX_BYTES
    from vuproc.handover.fd_store import DEVICE_FILE, content_of
    from vuproc.handover.sd_notify import announced

    if warm is None:
        content = announced(DEVICE_FILE, MAX_BYTES)
    else:
        content = content_of(warm.left, DEVICE_FILE)
    if not content:
        return None
    try:
        # It is in force, whatever has become of the files that it names: most of them are open.
        return _load(options, content, look=False)
    except ConfigErrors:
        return None


def _load(
    options: argparse.Namespace, content: bytes | None = None, *, look: bool = True
) -> DeviceFile:
    """The device file, or what `load` takes for its content, with what the command line says over
    it.
    """
    import msgspec

    from vuproc.device_file.check import check_socket_path, load

    file = load(options.file, content, look=look, makes_socket=options.fd is None)
    if options.socket is not None:
        path = os.path.abspath(options.socket)
        for problem in check_socket_path(path, file.socket.mode, look=look and options.fd is None):
            usage_error(f"--socket: {problem}")
        changed = msgspec.structs.replace(file.socket, path=path)
        file = file.with_keys(socket=changed)
    if options.log_level is not None:
        file = file.with_keys(log_level=options.log_level)
    return file
