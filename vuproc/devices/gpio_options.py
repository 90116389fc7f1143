"""What a device file may say of GPIO lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from vuproc.devices.gpio_host import MOST_HOST_LINES
from vuproc.devices.gpio_lines import MOST_LINES, nets_of
from vuproc.devices.host_paths import why_not_there
from vuproc.options import FilePath, Options

NAME_PATTERN = "^[!-~]([ -~]*[!-~])?$"
"""Of a line: ASCII that can be seen, and spaces between (5.18.6.1)."""
LARGEST_OFFSET = 1023


class LineOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One line of the device file."""

    name: (
        Annotated[
            str, Meta(pattern=NAME_PATTERN, max_length=31, description="What the driver calls it.")
        ]
        | None
    ) = None
    value: Annotated[Literal[0, 1], Meta(description="What its outside begins with.")] = 0
    wired_to: Annotated[str, Meta(description="Another line on the same wire.")] | None = None
    offset: (
        Annotated[int, Meta(ge=0, le=LARGEST_OFFSET, description="Which line of `chip` it is.")]
        | None
    ) = None


class GpioOptions(Options, kw_only=True):
    """The options of `type: gpio`."""

    json_schema: ClassVar[Mapping[str, Any]] = {"not": {"required": ["chip", "control"]}}

    lines: Annotated[
        tuple[LineOptions, ...],
        Meta(
            min_length=1,
            max_length=MOST_LINES,
            description="The lines: a list of mappings, each with `name`, `value`, `wired_to` or "
            "`offset` if it has them.",
        ),
    ]
    chip: (
        Annotated[
            FilePath,
            Meta(description="A GPIO chip of the host: /dev/gpiochip0. Each line has an offset."),
        ]
        | None
    ) = None
    control: (
        Annotated[
            FilePath, Meta(description="A socket by which scripts set and watch simulated lines.")
        ]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check names, wires and offsets."""
        yield from super().problems()
        if self.chip is not None and self.control is not None:
            yield "control", "lines of the host are set by what is attached to them"
        if self.chip is not None and len(self.lines) > MOST_HOST_LINES:
            yield "lines", f"{len(self.lines)} lines of the host, of at most {MOST_HOST_LINES}"
        if self.chip is not None and (problem := why_not_there(self.chip)):
            yield "chip", problem
        names: set[str] = set()
        offsets: set[int] = set()
        for number, line in enumerate(self.lines):
            for problem in self._problems_of(line, names, offsets):
                yield "lines", f"lines[{number}]: {problem}"

    def _problems_of(self, line: LineOptions, names: set[str], offsets: set[int]) -> Iterator[str]:
        if line.name is not None:
            if line.name in names:
                yield f"the name {line.name} is taken already"
            names.add(line.name)
        if self.chip is None:
            if line.offset is not None:
                yield "an offset is for lines of a chip"
            if line.wired_to is not None and line.wired_to not in self.names():
                yield f"wired to {line.wired_to}, and no line has that name"
            return
        if line.value or line.wired_to is not None:
            yield "a line of the host has its own wires and values"
        if line.offset is None:
            yield "which line of the chip it is, says an offset"
        elif line.offset in offsets:
            yield f"offset {line.offset} is taken already"
        else:
            offsets.add(line.offset)

    def names(self) -> dict[str, int]:
        """The numbers of the lines that have a name."""
        return {line.name: at for at, line in enumerate(self.lines) if line.name is not None}

    def nets(self) -> list[list[int]]:
        """For each line all that it is wired to."""
        names = self.names()
        return nets_of([None if at.wired_to is None else names[at.wired_to] for at in self.lines])
