"""`vuproc-blk`, `vuproc-net` and the like: a device by a program of its type, for management
software that starts back-ends by the conventions for them (QEMU, docs/interop/vhost-user.rst,
"Backend program conventions", and vhost-user.json).

Its options are those of the type. There is no device file, so there is no reload and no upgrade.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from vuproc import __version__
from vuproc.cli import invocation, streams
from vuproc.cli.arguments import EXIT_USAGE, check_descriptor
from vuproc.device import Device
from vuproc.device_file.check import load
from vuproc.device_file.fixed import fixed_options
from vuproc.devices import BUILTIN
from vuproc.errors import ConfigErrors
from vuproc.options import KIND, PATH

PREFIX = "vuproc-"
QEMU_TYPES: Mapping[str, str] = {
    "blk": "block",
    **{name: name for name in ("console", "fs", "input", "net", "rng", "scsi", "vsock")},
}
"""What `VHostUserBackendType` calls the types that it has."""
CONVENTIONS: Mapping[str, Mapping[str, str]] = {
    "blk": {"blk-file": "image", "read-only": "readonly"},
    "input": {"evdev-path": "evdev"},
}
"""Options that programs of a type have by convention, and which of ours they are."""
FEATURES: Mapping[str, Sequence[str]] = {
    "blk": ("blk-file", "read-only"),
    "input": ("evdev-path", "no-grab"),
}
"""What of them `--print-capabilities` tells."""

_TAKEN = {"fd"}
DEST = "option "
"""Before the name of a field, in the attributes of what was parsed."""


def main(arguments: Sequence[str] | None = None, name: str | None = None) -> int:
    """Serve a device of the type that this program is named for; returns the exit code."""
    streams.open_closed()
    type_name = Path(name or sys.argv[0]).name.removeprefix(PREFIX)
    if type_name not in BUILTIN:
        print(f"{PREFIX}{type_name}: there is no such type of device", file=sys.stderr)
        return EXIT_USAGE
    device = class_of(type_name)
    if {"-h", "--help"} & set(sys.argv[1:] if arguments is None else arguments):
        from vuproc.cli.reference import descriptions

        described = descriptions(device)
    else:
        described = {}
    options = make_parser(type_name, device, described).parse_args(arguments)
    if options.print_capabilities:
        print(json.dumps(capabilities(type_name)))
        return 0
    if (options.socket_path is None) == (options.fd is None):
        print(f"{PREFIX}{type_name}: either --socket-path or --fd", file=sys.stderr)
        return EXIT_USAGE
    return _serve(type_name, device, options)


def capabilities(type_name: str) -> dict[str, Any]:
    """What `--print-capabilities` prints of a type (`VHostUserBackendCapabilities`)."""
    found: dict[str, Any] = {"type": QEMU_TYPES.get(type_name, type_name)}
    if type_name in FEATURES:
        found["features"] = list(FEATURES[type_name])
    return found


def class_of(type_name: str) -> type[Device]:
    """The class of a built-in type."""
    module, _, attribute = BUILTIN[type_name].partition(":")
    found: type[Device] = getattr(importlib.import_module(module), attribute)
    return found


def _serve(type_name: str, device: type[Device], options: argparse.Namespace) -> int:
    from vuproc.serve import serve

    if options.fd is not None:
        check_descriptor(options.fd)
    lines = list(_lines(type_name, device, options))
    content = "".join(f"{text}\n" for _, text in lines).encode()
    try:
        file = load(f"{PREFIX}{type_name}", content, makes_socket=options.fd is None)
    except ConfigErrors as errors:
        for error in errors.errors:
            at = lines[error.line - 1][0] if 0 < error.line <= len(lines) else ""
            print(f"{PREFIX}{type_name}: {at}{error.message}", file=sys.stderr)
        return EXIT_USAGE
    if options.log_level is not None:
        file = file.with_keys(log_level=options.log_level)
    invocation.leave_folder()
    return serve(file, options.fd)


def _lines(
    type_name: str, device: type[Device], options: argparse.Namespace
) -> Iterator[tuple[str, str]]:
    """The device file that the options stand for, by lines: where each comes from, and its text."""
    path = os.path.abspath(options.socket_path or f"{PREFIX}{type_name}.sock")
    yield "--socket-path: ", f"socket: {json.dumps(path)}"
    yield "", "device:"
    yield "", f"  type: {type_name}"
    for field in msgspec.structs.fields(device.options_type):
        value = getattr(options, DEST + field.name, None)
        if value is None:
            continue
        if isinstance(value, bool) or _is_text(field.type):
            value = json.dumps(value)
        yield f"--{_flag(type_name, field.name)}: ", f"  {field.name}: {value}"


def make_parser(
    type_name: str, device: type[Device], described: Mapping[str, str] = MappingProxyType({})
) -> argparse.ArgumentParser:
    """The grammar of the program of a type. `described` says what options mean, by their keys in a
    device file: it takes some time to make, and only those who read need it.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PREFIX}{type_name}",
        description=f"Serve a virtio device ({type_name}) over vhost-user.",
        epilog=f"What the options mean: `vuproc devices {type_name}`. Lists and mappings are "
        "written as in a device file: --cpus '[0, 1]'.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vuproc {__version__}")
    parser.add_argument("--socket-path", metavar="PATH", help="listen there")
    parser.add_argument("--fd", type=int, metavar="N", help="use this inherited socket")
    parser.add_argument(
        "--print-capabilities", action="store_true", help="print what this program can, and end"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="least level of what is logged",
    )
    aliases = CONVENTIONS.get(type_name, {})
    for field in msgspec.structs.fields(device.options_type):
        if field.name in fixed_options(device):
            continue
        flags = [f"--{_flag(type_name, field.name)}"]
        flags += [f"--{other}" for other, ours in aliases.items() if ours == field.name]
        about = described.get(field.name, "").replace("%", "%%") or None
        if field.type is bool or _unwrapped(field.type) is bool:
            parser.add_argument(
                *flags,
                dest=DEST + field.name,
                action=argparse.BooleanOptionalAction,
                help=about,
            )
        else:
            parser.add_argument(
                *flags, dest=DEST + field.name, metavar=_metavar(field.type), help=about
            )
    return parser


def _flag(type_name: str, name: str) -> str:
    """One that is taken has the type's name before it: --can-fd."""
    return f"{type_name}-{name}" if name in _TAKEN else name.replace("_", "-")


def _unwrapped(kind: Any) -> Any:
    """What an annotation is of."""
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _members(kind: Any) -> Sequence[msgspec.inspect.Type]:
    """The types of which a value of this type has one."""
    info = msgspec.inspect.type_info(kind)
    return info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)


def words_of(kind: Any) -> list[str]:
    """The words that are values of this type, if there are few."""
    bare = [
        each.type if isinstance(each, msgspec.inspect.Metadata) else each for each in _members(kind)
    ]
    return [
        str(value)
        for each in bare
        if isinstance(each, msgspec.inspect.LiteralType)
        for value in each.values
    ]


def _metavar(kind: Any) -> str:
    path = any(
        isinstance(each, msgspec.inspect.Metadata) and (each.extra or {}).get(KIND) == PATH
        for each in _members(kind)
    )
    return "PATH" if path else "VALUE"


def _is_text(kind: Any) -> bool:
    """Whether every value but None of this type is text."""
    return all(
        isinstance(each, msgspec.inspect.StrType | msgspec.inspect.NoneType)
        or (
            isinstance(each, msgspec.inspect.LiteralType)
            and all(isinstance(value, str) for value in each.values)
        )
        or (
            isinstance(each, msgspec.inspect.Metadata)
            and isinstance(each.type, msgspec.inspect.StrType)
        )
        for each in _members(kind)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], sys.argv[1]))
