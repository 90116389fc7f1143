"""What a device file may say of an input device."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from vuproc.devices.host_paths import why_not_there
from vuproc.devices.input_kind import KindName
from vuproc.options import FilePath, Options
from vuproc.spec.input import UNION_BYTES

_Name = Annotated[str, Meta(min_length=1, max_length=UNION_BYTES)]


class InputOptions(Options, kw_only=True):
    """The options of `type: input`."""

    json_schema: ClassVar[Mapping[str, Any]] = {
        "not": {"required": ["events", "evdev"]},
        "if": {"required": ["grab"], "properties": {"grab": {"const": True}}},
        "then": {"required": ["evdev"]},
    }

    kind: Annotated[
        KindName,
        Meta(description="What the driver sees; a device of the host is what it is."),
    ] = "keyboard"
    events: (
        Annotated[
            FilePath,
            Meta(
                description="A named pipe, which is made if it is not there, for lines such as "
                "`key a`, `type hello`, `rel x 5`, `syn`."
            ),
        ]
        | None
    ) = None
    evdev: (
        Annotated[FilePath, Meta(description="An input device of the host: /dev/input/event3.")]
        | None
    ) = None
    grab: Annotated[bool, Meta(description="Have the events of `evdev` for the guest alone.")] = (
        False
    )
    name: Annotated[_Name, Meta(description="What it is called; otherwise by its kind.")] | None = (
        None
    )
    serial: (
        Annotated[_Name, Meta(description="Its serial number; otherwise it has none.")] | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is one source, and that it may be one."""
        yield from super().problems()
        if self.events is not None and self.evdev is not None:
            yield "evdev", "events and evdev exclude each other"
        if self.grab and self.evdev is None:
            yield "grab", "only a device of the host can be grabbed: evdev names one"
        if self.evdev is not None and (problem := why_not_there(self.evdev)):
            yield "evdev", problem
        if self.events is not None:
            try:
                if not stat.S_ISFIFO(os.stat(self.events).st_mode):
                    yield "events", f"{self.events}: not a named pipe"
            except FileNotFoundError:
                pass
            except OSError as error:
                yield "events", f"{self.events}: {error.strerror}"
