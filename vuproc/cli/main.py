"""The command `vuproc`: its verbs and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vuproc import __version__, inquiries
from vuproc.cli import arguments as words_of
from vuproc.cli import describe, many, observe, run, streams, text
from vuproc.cli.arguments import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Formatter, usage_error
from vuproc.devices import BUILTIN
from vuproc.errors import ConfigErrors
from vuproc.unix_path import ADMIN_SUFFIX

if TYPE_CHECKING:
    from vuproc.inquiries import Inquiry
    from vuproc.ops.admin import Request

EXIT_INTERRUPTED = 130
"""As shells report a program that SIGINT ended."""

UPGRADE_DEADLINE_S = 90.0
"""Seconds in which the new program must have taken over: longer than its trial may last."""
LOOK_S = 0.05
"""Pause between two questions to a program that is being replaced."""

_NO_SHTAB = "vuproc: completion needs shtab: pip install 'vuproc[completion]' (or shtab by itself)"

STARTING = ("run",)
"""Verbs whose start is waited for."""
LOG_LEVELS = ("debug", "info", "warning", "error")
PROGRAMS = ("vuproc", *(f"vuproc-{name}" for name in BUILTIN))
SHELLS = ("bash", "zsh", "tcsh", "fish")
CLIENTS = (
    "qemu",
    "qemu-microvm",
    "cloud-hypervisor",
    "crosvm",
    "openvmm",
    "libkrun",
    "libvirt",
    "kata",
    "uml",
    "libblkio",
    "dpdk",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's) and return the exit code."""
    streams.open_closed()
    inquiries.manner.notice = _say_what_is_waited_for
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    verb: Callable[[argparse.Namespace], int] = options.verb
    try:
        code = verb(options)
        sys.stdout.flush()
        return code
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return EXIT_USAGE
    except FileNotFoundError:
        if _has_folder():
            raise
        print("vuproc: the current folder was removed: cd to another one", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain once more while it exits.
        streams.silence(sys.stdout.fileno())
        return EXIT_FAILED
    finally:
        streams.flush_errors()


def _say_what_is_waited_for(inquiry: Inquiry) -> None:
    from vuproc.handover.sd_notify import Notifier

    text = f"no answer yet from {inquiry.about}: waiting for up to {inquiry.seconds:.0f} s"
    print(f"vuproc: {text}", file=sys.stderr, flush=True)
    notifier = Notifier.from_environment(dict(os.environ))
    notifier.status(text)
    notifier.close()


def _has_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def hint(options: argparse.Namespace) -> int:
    """`vuproc hint`: how a client attaches the device."""
    from vuproc.cli.hint import HintError
    from vuproc.cli.hint import hint as make_hint
    from vuproc.device_file.check import load

    file = load(options.file)
    try:
        print(make_hint(options.client, file, options.memory))
    except HintError as error:
        print(f"vuproc: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def status(options: argparse.Namespace) -> int:
    """`vuproc status`: what a running device says of itself."""
    import json

    import msgspec

    from vuproc.ops.admin import Request
    from vuproc.ops.status import Status

    if os.path.isdir(options.target):
        return many.status(options.target, as_json=options.json)
    answer = _ask(options.target, Request("status"))
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print(msgspec.convert(answer, Status).table())
    return EXIT_OK


def stop(options: argparse.Namespace) -> int:
    """`vuproc stop`: have a device end in order, and wait for that."""
    from vuproc.device_file.target import socket_of
    from vuproc.ops.admin import Request

    if os.path.isdir(options.target):
        return many.stop(options.target)
    _ask(options.target, Request("stop"))
    return many.await_end(options.target, Path(f"{socket_of(options.target)}{ADMIN_SUFFIX}"))


def queue(options: argparse.Namespace) -> int:
    """`vuproc queue restart N`: serve a broken queue again."""
    from vuproc.ops.admin import Request

    _ask(options.target, Request("queue-restart", options.number))
    print(f"queue {options.number} is served again")
    return EXIT_OK


def link(options: argparse.Namespace) -> int:
    """`vuproc link up|down`: the cable of a network device."""
    from vuproc.ops.admin import Request

    _ask(options.target, Request("link", up=options.state == "up"))
    print(f"the link is {options.state}")
    return EXIT_OK


def reload(options: argparse.Namespace) -> int:
    """`vuproc reload`: take up a changed device file."""
    from vuproc.ops.admin import RELOAD_S, Request

    if os.path.isdir(options.target):
        return many.reload(options.target)
    for line in _ask(options.target, Request("reload"), timeout_s=RELOAD_S)["lines"]:
        print(line)
    return EXIT_OK


def upgrade(options: argparse.Namespace) -> int:
    """`vuproc upgrade`: have newly installed code take over."""
    import time

    from vuproc.ops.admin import Request

    if os.path.isdir(options.target):
        usage_error("upgrade: a device at a time, or all of them by SIGUSR2 to their parent")
    before = _ask(options.target, Request("upgrade"))["started"]
    deadline = time.monotonic() + UPGRADE_DEADLINE_S
    while time.monotonic() < deadline:
        status = _ask(options.target, Request("status"), patient_until=deadline)
        if status["started"] != before:
            print(f"upgraded: process {status['pid']} goes on with the new program")
            return EXIT_OK
        if status["upgrade"].startswith("refused"):
            print(f"vuproc: upgrade {status['upgrade']}", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(LOOK_S)
    print(f"vuproc: nothing has come of it in {UPGRADE_DEADLINE_S:g} s", file=sys.stderr)
    return EXIT_FAILED


def write_back(options: argparse.Namespace) -> int:
    """`vuproc write-back`: have what the guest has written go to the object store, and wait."""
    import time

    import msgspec

    from vuproc.ops.admin import Request
    from vuproc.ops.status import Status

    number = _ask(options.target, Request("write-back"))["number"]
    deadline = time.monotonic() + options.timeout
    while True:
        answer = _ask(options.target, Request("status"), patient_until=deadline)
        said = msgspec.convert(answer, Status).details.get("write-back", {})
        if int(said.get("answered", 0)) >= number:
            print(f"written back, as of {said['last']}")
            return EXIT_OK
        if said.get("state") == "stopped" or time.monotonic() >= deadline:
            why = said.get("why") or f"not done in {options.timeout} s, and going on"
            print(f"vuproc: write-back: {why}", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(LOOK_S)


def discovery(options: argparse.Namespace) -> int:
    """`vuproc discovery`: tell management software of the programs of each type."""
    from vuproc.cli.discovery import DiscoveryError, write

    try:
        for path in write(options.folder, options.programs):
            print(path)
    except (DiscoveryError, OSError) as error:
        print(f"vuproc: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def completion(options: argparse.Namespace) -> int:
    """`vuproc completion`: what a shell completes the words of a program by."""
    try:
        from vuproc.cli.completion import script
    except ModuleNotFoundError as error:
        if error.name != "shtab":
            raise
        print(_NO_SHTAB, file=sys.stderr)
        return EXIT_FAILED
    print(script(options.shell, options.program))
    return EXIT_OK


def image(options: argparse.Namespace) -> int:
    """`vuproc image push|pull`: a raw image to one in pieces, and back."""
    from vuproc.devices import pieces_transfer

    try:
        if options.action == "push":
            print(pieces_transfer.push(options.source, options.target, options.piece_size))
        else:
            print(pieces_transfer.pull(options.source, options.target))
    except (pieces_transfer.TransferFailed, OSError) as error:
        print(f"vuproc: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _ask(
    target: str, request: Request, *, patient_until: float = 0.0, timeout_s: float = 10.0
) -> dict[str, Any]:
    """Ask the running device of a device file, or of a socket. Exits with 1 if it refuses.

    `patient_until` (time.monotonic): until then it may be away for a moment.
    """
    import time

    from vuproc.device_file.target import socket_of
    from vuproc.ops.admin import AdminError, ask

    path = socket_of(target)
    while True:
        try:
            return ask(path, request, timeout_s)
        except AdminError as error:
            if time.monotonic() >= patient_until:
                print(f"vuproc: {error}", file=sys.stderr)
                raise SystemExit(EXIT_FAILED) from None
            time.sleep(LOOK_S)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """A start has no use for the grammar of other verbs, which takes a while to make."""
    only = arguments[0] if arguments and arguments[0] in STARTING else None
    return make_parser(only).parse_args(arguments)


class _NotAsked(argparse.ArgumentParser):
    """Stands for the grammar of a verb that is left out."""

    def add_argument(self, *_args: Any, **_options: Any) -> argparse.Action:
        return argparse.Action([], "")


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The grammar of the command; `only`: of this verb alone."""
    parser = argparse.ArgumentParser(
        prog="vuproc",
        description=text.PROGRAM,
        epilog=text.PROGRAM_EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=f"vuproc {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    left_out = _NotAsked(add_help=False)

    def add(
        name: str, function: Callable[[argparse.Namespace], int], line: str, text: str, epilog: str
    ) -> argparse.ArgumentParser:
        if only not in (None, name):
            return left_out
        verb = verbs.add_parser(
            name,
            help=line,
            description=text,
            epilog=epilog,
            formatter_class=Formatter,
        )
        verb.set_defaults(verb=function)
        return verb

    verb = add("run", run.run, "serve a device", text.RUN, text.RUN_EPILOG)
    verb.add_argument(
        "files", metavar="FILE", nargs="+", help="the device file; or several, or a folder of them"
    )
    verb.add_argument(
        "--fd",
        type=words_of.descriptor,
        metavar="N",
        help="use the inherited socket with this number",
    )
    verb.add_argument("--socket", metavar="PATH", help="use this path, not the device file's")
    verb.add_argument("--log-level", choices=LOG_LEVELS, help="use this, not the device file's")
    verb.add_argument(
        "--supervised", action="store_true", help="survive the death of the serving process, too"
    )
    verb.add_argument(
        "--no-standby",
        action="store_true",
        help="have no second serving process wait for the death of the first",
    )

    verb.add_argument(
        "--standby",
        action="store_true",
        help="several devices: have a worker wait for each, also where a fork is soon ready",
    )

    verb = add("check", describe.check, "check device files", text.CHECK, text.CHECK_EPILOG)
    verb.add_argument("files", metavar="FILE", nargs="+", help="a device file")
    verb.add_argument(
        "--resolved", action="store_true", help="print each file in full, as it is understood"
    )
    verb.add_argument(
        "--sandbox", action="store_true", help="print what each process of the device may do"
    )

    add("schema", describe.schema, "print the JSON Schema", text.SCHEMA, text.SCHEMA_EPILOG)

    verb = add("devices", describe.devices, "list device types", text.DEVICES, text.DEVICES_EPILOG)
    verb.add_argument("name", metavar="NAME", nargs="?", help="a type to describe in full")

    verb = add("hint", hint, "show how a VMM attaches it", text.HINT, text.HINT_EPILOG)
    verb.add_argument("client", metavar="CLIENT", choices=CLIENTS, help=", ".join(CLIENTS))
    verb.add_argument("file", metavar="FILE", help="the device file")
    verb.add_argument(
        "--memory",
        type=words_of.memory,
        default="1G",
        metavar="SIZE",
        help="guest memory (default 1G)",
    )

    verb = add("status", status, "show queues and workers", text.STATUS, text.STATUS_EPILOG)
    verb.add_argument("target", metavar="FILE", help="the device file, the socket, or the folder")
    verb.add_argument("--json", action="store_true", help="print everything, for programs")

    verb = add("stop", stop, "end a device", text.STOP, text.STOP_EPILOG)
    verb.add_argument("target", metavar="FILE", help="the device file, the socket, or the folder")

    verb = add("reload", reload, "take up a changed file", text.RELOAD, text.RELOAD_EPILOG)
    verb.add_argument("target", metavar="FILE", help="the device file, the socket, or the folder")

    verb = add("upgrade", upgrade, "run new code", text.UPGRADE, text.UPGRADE_EPILOG)
    verb.add_argument("target", metavar="FILE", help="the device file, or the socket")

    verb = add("queue", queue, "restart a broken queue", text.QUEUE, text.QUEUE_EPILOG)
    verb.add_argument("action", choices=("restart",), help="what to do with it")
    verb.add_argument("number", metavar="N", type=int, help="the queue, counted from 0")
    verb.add_argument("target", metavar="FILE", help="the device file, or the socket")

    verb = add("link", link, "plug a network device in or out", text.LINK, text.LINK_EPILOG)
    verb.add_argument("state", choices=("up", "down"), help="what it is to be")
    verb.add_argument("target", metavar="FILE", help="the device file, or the socket")

    verb = add("write-back", write_back, "write changes back", text.BACK, text.BACK_EPILOG)
    verb.add_argument("target", metavar="FILE", help="the device file, or the socket")
    verb.add_argument(
        "--timeout",
        type=words_of.seconds,
        default=600,
        metavar="S",
        help="wait for so many seconds at most (default 600)",
    )

    verb = add(
        "discovery", discovery, "tell of the programs", text.DISCOVERY, text.DISCOVERY_EPILOG
    )
    verb.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", help="where the files are to be"
    )
    verb.add_argument(
        "--programs",
        metavar="FOLDER",
        type=Path,
        help="where the programs will be, for a package that is being made (default: beside this)",
    )

    verb = add(
        "completion", completion, "complete by shell", text.COMPLETION, text.COMPLETION_EPILOG
    )
    verb.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    verb.add_argument(
        "program",
        metavar="PROGRAM",
        nargs="?",
        choices=PROGRAMS,
        default="vuproc",
        help="vuproc (the default), or vuproc-TYPE of a built-in type",
    )

    verb = add("image", image, "make an image in pieces", text.IMAGE, text.IMAGE_EPILOG)
    verb.add_argument("action", choices=("push", "pull"), help="to the store, or from there")
    verb.add_argument("source", metavar="FROM", help="a raw image, or the URL of an image")
    verb.add_argument("target", metavar="TO", help="the URL of an image in pieces, or a new file")
    verb.add_argument(
        "--piece-size",
        type=words_of.size,
        default=1 << 20,
        metavar="SIZE",
        help="of each object: a power of two from 64K to 64M (default 1M)",
    )

    observe.add_verbs(add, _ask)
    return parser
