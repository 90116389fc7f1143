"""The options of a console."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from vuproc.devices.console_ends import BackendName
from vuproc.options import FilePath, Options
from vuproc.unix_path import MAX_ADDRESS

MOST_PORTS = 16
"""Ports of a device, the first one included: each has several descriptors in every worker."""
WITH_PATH = ("socket", "file")
"""Back-ends that are nowhere without a path."""


class PortOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One port beside the first."""

    name: Annotated[
        str,
        Meta(
            pattern="^[!-~]{1,64}$",
            description="Name of the port: Linux has it in /sys/class/virtio-ports.",
        ),
    ]
    backend: BackendName = "socket"
    path: FilePath | None = None
    console: bool = False


class ConsoleOptions(Options, kw_only=True):
    """The options of `type: console`."""

    superseded: ClassVar[Mapping[str, str]] = {
        "queues": "ports says how many queues this device has, two a port"
    }
    json_schema: ClassVar[Mapping[str, Any]] = {
        "dependentRequired": {"columns": ["rows"], "rows": ["columns"]}
    }
    live: ClassVar[frozenset[str]] = Options.live | {"columns", "rows"}

    backend: Annotated[
        BackendName,
        Meta(
            description="The other end of the console. pty: a pseudo terminal of its own, whose "
            "path is in the log. socket: one client at a time of a Unix socket. file: output is "
            "appended to a file. stdio: standard input and output of vuproc. null: nowhere."
        ),
    ] = "pty"
    path: (
        Annotated[
            FilePath,
            Meta(description="Of the socket or the file; of pty, a symbolic link to the terminal."),
        ]
        | None
    ) = None
    columns: (
        Annotated[int, Meta(ge=1, le=65535, description="Columns of the console's window.")] | None
    ) = None
    rows: Annotated[int, Meta(ge=1, le=65535, description="Its rows.")] | None = None
    resize: Annotated[
        Literal["columns-first", "rows-first"],
        Meta(
            description="How the size is told to a driver with several ports: columns-first as in "
            "the specification, or rows-first, as Linux took it for many years."
        ),
    ] = "columns-first"
    ports: Annotated[
        tuple[PortOptions, ...],
        Meta(
            max_length=MOST_PORTS - 1,
            description="Ports beside the console, which is port 0: each a mapping of name, "
            "backend (socket), path and console (false: a port that programs read and write).",
        ),
    ] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Columns and rows, if they are given."""
        if self.columns is None or self.rows is None:
            return None
        return self.columns, self.rows

    def all_ports(self) -> list[tuple[str, PortOptions]]:
        """Every port by its number, and the option that is about its file."""
        first = PortOptions(name="-", backend=self.backend, path=self.path, console=True)
        return [("path", first), *(("ports", port) for port in self.ports)]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that each end can be had, by one port alone."""
        yield from super().problems()
        if (self.columns is None) != (self.rows is None):
            yield "columns", "columns and rows go together"
        paths, names = set(), set()
        for number, (option, port) in enumerate(self.all_ports()):
            where = "" if number == 0 else f"{port.name}: "
            if port.backend in WITH_PATH and port.path is None:
                yield option, f"{where}{port.backend} needs a path"
            elif port.path is not None:
                if port.backend not in (*WITH_PATH, "pty"):
                    yield option, f"{where}{port.backend} has no path"
                elif port.backend == "socket" and len(os.fsencode(port.path)) > MAX_ADDRESS:
                    yield option, f"{where}a socket's path has at most {MAX_ADDRESS} bytes"
                elif port.path in paths:
                    yield option, f"{where}{port.path} is another port's"
                paths.add(port.path)
            if number and port.name in names:
                yield option, f"two ports have the name {port.name}"
            names.add(port.name)
        if sum(port.backend == "stdio" for _, port in self.all_ports()) > 1:
            yield "ports", "there is one standard input and output"
