"""Simulated nodes of a CAN bus."""

from __future__ import annotations

import os
import signal
from typing import Annotated

from msgspec import Meta

from vuproc import FilePath
from vuproc.devices.can import Can
from vuproc.devices.can_frame import Frame
from vuproc.devices.can_options import CanOptions

ASK, MANY, NEVER, FAULT, OFF, DIE, FD, DIE_OFF = range(0x700, 0x708)
"""Identifiers of frames, and what becomes of them."""
ANSWER = 0x7E8


class NodesOptions(CanOptions, kw_only=True):
    """Where is noted what was on the bus."""

    seen: Annotated[FilePath, Meta(description="A line for each frame.")]


class Nodes(Can):
    """Answers, in many ways."""

    options_type = NodesOptions
    options: NodesOptions
    dies = False

    def config_changed(self) -> None:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        super().config_changed()

    def frame(self, frame: Frame) -> bool | None:
        with open(self.options.seen, "a") as seen:
            seen.write(f"{frame.id:x} {frame.data.hex()}\n")
        match frame.id:
            case 0x700:
                self.send(Frame(ANSWER, frame.data[::-1]))
            case 0x701:
                for number in range(int.from_bytes(frame.data, "little")):
                    self.send(Frame(ANSWER, number.to_bytes(4, "little")))
            case 0x702:
                return False
            case 0x703:
                raise RuntimeError("a fault of the node's author")
            case 0x704:
                self.bus_off()
            case 0x705:
                os.kill(os.getpid(), signal.SIGKILL)
            case 0x706:
                self.send(Frame(ANSWER, bytes(64), fd=True))
            case 0x707:
                self.dies = True
                self.bus_off()
        return None
