"""Many devices of one command: `vuproc run` with a folder or several files, and the verbs that are
given a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vuproc.cli import invocation
from vuproc.cli.arguments import EXIT_FAILED, EXIT_OK, usage_error

if TYPE_CHECKING:
    from vuproc.device_file.check import DeviceFile
    from vuproc.errors import ConfigErrors
    from vuproc.warm_start import WarmStart

ASK_S = 10.0
"""Seconds in which the parent must answer."""
STOP_S = 90.0
"""Seconds in which a device must have ended: longer than its drain and its hooks by default."""
LOOK_S = 0.02
"""Seconds between two looks whether it has."""

_ALONE = (
    ("fd", None, "--fd is for one device: it has one socket"),
    ("socket", None, "--socket is for one device: each file says its own"),
)


def run(options: argparse.Namespace) -> NoReturn:
    """Become the keeper of all devices that the options name."""
    from vuproc.handover.keeper import PROGRAM
    from vuproc.handover.keeper.folder import Places

    for name, absent, message in _ALONE:
        if getattr(options, name) is not absent:
            usage_error(message)
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS"):
        usage_error("sockets of a service manager are for one device: run each by itself")
    paths = [os.path.abspath(path) for path in options.files]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        usage_error(f"{missing[0]}: there is no such file or folder")
    try:
        _, wrong = Places(paths).files()
    except OSError as error:
        usage_error(f"{error.filename}: {error.strerror}")
    if wrong:
        usage_error(wrong[0])
    words = [part for path in paths for part in ("--devices", path)]
    command = [*invocation.program(), "run", "--no-standby"]
    if options.standby:
        command.append("--standby")
    if options.log_level is not None:
        command += ["--log-level", options.log_level]
    invocation.leave_folder()
    os.execv(sys.executable, [sys.executable, "-I", "-S", PROGRAM, *words, *command])


def wait_for_order() -> WarmStart | None:
    """This process was started as the shared forkserver: comes back in each master."""
    from vuproc.handover.sd_notify import InheritError
    from vuproc.handover.standby_master import NotHandedOver
    from vuproc.shared_forkserver import from_environment

    try:
        forkserver = from_environment()
        return None if forkserver is None else forkserver.wait_for_order()
    except (InheritError, NotHandedOver) as error:
        sys.exit(f"vuproc: {error}")


class Away(Exception):
    """All that is wrong with a device file is that somebody was not to be reached; in words."""


def only_away(errors: ConfigErrors, before: int) -> bool:
    """Whether that is all; `before` of the questions of this process had no answer before."""
    from vuproc import inquiries

    return inquiries.manner.without - before >= len(errors.errors)


def read_apart(read: Callable[[], DeviceFile]) -> DeviceFile | None:
    """Read a device file, and try the machine, in a process that ends then: that would touch most
    of the memory that this one shares, and each page of it would be its own from then on.

    None if the device is not one of ours, whose class is to be imported here, or if anything is
    wrong, which is to be said here. Raises Away: who did not answer there is not asked once more.
    """
    import pickle

    from vuproc import host, inquiries
    from vuproc.devices import BUILTIN
    from vuproc.errors import ConfigErrors, HostLacks

    readable, written = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(readable)
        os.close(written)
        return None
    if pid == 0:
        before = inquiries.manner.without
        with contextlib.suppress(HostLacks, OSError):
            found: DeviceFile | str | None = None
            try:
                file = read()
                host.check()
                if file.type_ref in BUILTIN:
                    found = file
            except ConfigErrors as errors:
                if only_away(errors, before):
                    found = str(errors)
            if found is not None:
                with open(written, "wb") as output:
                    pickle.dump(found, output)
        os._exit(0)
    os.close(written)
    with open(readable, "rb") as result:
        content = result.read()
    os.waitpid(pid, 0)
    found = pickle.loads(content) if content else None
    if isinstance(found, str):
        raise Away(found)
    return found


# Verbs that are given a folder.


def status(folder: str, *, as_json: bool) -> int:
    """What every device of a folder says of itself."""
    import msgspec

    from vuproc.device_file.target import socket_of
    from vuproc.errors import ConfigErrors
    from vuproc.ops.admin import AdminError, Request, ask
    from vuproc.ops.status import Status

    found, connection = _ask(folder, "status")
    connection.close()
    for device in found["devices"]:
        device["status"] = None
        if device["state"] == "running":
            try:
                device["status"] = ask(socket_of(device["file"]), Request("status"))
            except (AdminError, ConfigErrors) as error:
                device["state"] = f"does not answer: {error}"
    if as_json:
        print(json.dumps(found, indent=2))
        return EXIT_OK
    print(f"{folder}: parent {found['pid']}, {len(found['devices'])} devices")
    for line in found["wrong"]:
        print(line)
    for device in found["devices"]:
        if device["status"] is None:
            code = "" if not device["code"] else f" (exit code {device['code']})"
            print(f"\n{device['name']}: {device['state']}{code}")
        else:
            print(f"\n{device['name']}: {msgspec.convert(device['status'], Status).table()}")
    return EXIT_OK


def reload(folder: str) -> int:
    """Have a folder looked at anew, and every device that runs read its file again."""
    from vuproc.device_file.target import socket_of
    from vuproc.errors import ConfigErrors
    from vuproc.ops.admin import RELOAD_S, AdminError, Request, ask

    found, connection = _ask(folder, "reload")
    connection.close()
    for line in found["lines"]:
        print(line)
    code = EXIT_OK
    for file in found["running"]:
        name = Path(file).stem
        try:
            for line in ask(socket_of(file), Request("reload"), RELOAD_S)["lines"]:
                print(f"{name}: {line}")
        except (AdminError, ConfigErrors) as error:
            print(f"vuproc: {name}: {error}", file=sys.stderr)
            code = EXIT_FAILED
    return code


def stop(folder: str) -> int:
    """Have all devices of a folder end, and wait for that."""
    _, connection = _ask(folder, "stop")
    with connection:
        connection.settimeout(STOP_S)
        try:
            connection.recv(1)  # its end is that of the parent
        except TimeoutError:
            print(f"vuproc: {folder}: not ended in {STOP_S:g} s", file=sys.stderr)
            return EXIT_FAILED
        except OSError:
            pass
    print(f"{folder}: stopped")
    return EXIT_OK


def await_end(target: str, admin: Path) -> int:
    """Wait until a device that was asked to end has removed its admin socket."""
    deadline = time.monotonic() + STOP_S
    while admin.exists():
        if time.monotonic() >= deadline:
            print(f"vuproc: {target}: not ended in {STOP_S:g} s", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(LOOK_S)
    print(f"{target}: stopped")
    return EXIT_OK


def _ask(folder: str, verb: str) -> tuple[dict[str, Any], socket.socket]:
    """The parent's answer, and the connection to it. Exits with 1 if there is none."""
    from vuproc.handover.keeper.control import address_of, user_of
    from vuproc.ops.admin import line_of

    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(ASK_S)
        client.connect(address_of(folder))
        if user_of(client) not in (os.getuid(), os.stat(folder).st_uid, 0):
            raise OSError(0, "somebody else answers")
        client.sendall(json.dumps({"verb": verb}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(line_of(client))
    except (OSError, ValueError) as error:
        client.close()
        reason = error.strerror if isinstance(error, OSError) else "no answer that makes sense"
        print(f"vuproc: {folder}: no `vuproc run` of this folder: {reason}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    if not answer.pop("ok", False):
        client.close()
        print(f"vuproc: {folder}: {answer.get('error', 'failed')}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED)
    return answer, client
