"""A device whose code fails and talks on demand, for tests of what the log makes of it."""

from __future__ import annotations

import os
import threading
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Options, Request, log_limit

LONG = "x" * 100_000
SURROGATE = "before \ud800 after"
FORGED = "gone\nvuproc device: ERROR: queue 0: broken\x1b[2J"
"""What would look like a line of the log, and clear the screen."""
TEXTS = {"long": LONG, "surrogate": SURROGATE, "forged": FORGED}
KINDS = {"long": LookupError, "surrogate": ValueError, "forged": ArithmeticError}
PERIOD_S = 0.3


class Speechless(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise LookupError("no words")

    __repr__ = __str__


class TalkativeOptions(Options, kw_only=True):
    setup_fails_with: str = ""
    quick: Annotated[bool, Meta(description="Counts come after PERIOD_S.")] = False


class Talkative(Device):
    """Device id 42; a request is a word and its argument, answered with text."""

    device_id = 42
    options_type = TalkativeOptions
    options: TalkativeOptions

    def __init__(self, options: TalkativeOptions | None = None) -> None:
        super().__init__(options)
        if self.options.quick:
            log_limit.PERIOD_S = PERIOD_S

    def __repr__(self) -> str:
        raise LookupError("no words")

    def config_space(self) -> bytes:
        return b"config--"

    def setup(self, queue: int) -> None:
        if self.options.setup_fails_with:
            raise RuntimeError(TEXTS[self.options.setup_fails_with])

    def config_written(self, offset: int, data: bytes) -> None:
        raise ValueError(LONG + SURROGATE)

    def handle(self, request: Request) -> None:
        word, _, argument = request.read().decode().partition(" ")
        getattr(self, f"do_{word}")(request, argument)

    def do_pid(self, request: Request, argument: str) -> None:
        request.write(str(os.getpid()).encode())

    def do_raise(self, request: Request, argument: str) -> None:
        raise KINDS.get(argument, LookupError)(TEXTS.get(argument, argument))

    def do_raise_here(self, request: Request, argument: str) -> None:
        raise LookupError(argument)

    def do_raise_nothing(self, request: Request, argument: str) -> None:
        raise Speechless

    def do_log(self, request: Request, argument: str) -> None:
        self.log.info("%s", TEXTS.get(argument, argument))

    def do_misfit(self, request: Request, argument: str) -> None:
        self.log.info("%d", argument)

    def do_chatter(self, request: Request, argument: str) -> None:
        for number in range(int(argument)):
            self.log.info("line %d", number)

    def do_chatter_aside(self, request: Request, argument: str) -> None:
        """The same from a thread, while this one fails."""
        thread = threading.Thread(target=self.do_chatter, args=(request, argument))
        thread.start()
        thread.join()
        raise LookupError("after all that was said")

    def do_badwatch(self, request: Request, argument: str) -> None:
        """Watch what stays readable, with a callback that raises."""
        self.read, self.write = os.pipe()
        os.write(self.write, b"x")
        self.watch(self.read, self.raises)

    def do_readfirst(self, request: Request, argument: str) -> None:
        """Write what a callback reads before it raises."""
        if not hasattr(self, "read"):
            self.read, self.write = os.pipe()
            self.watch(self.read, self.reads_first)
        os.write(self.write, argument.encode())
        request.write(b"written")

    def reads_first(self) -> None:
        raise ArithmeticError(f"with {os.read(self.read, 1)!r}")

    def do_rewatch(self, request: Request, argument: str) -> None:
        self.watch(self.read, self.reads)

    def raises(self) -> None:
        raise ArithmeticError("in a callback")

    def reads(self) -> None:
        self.log.info("read %s", os.read(self.read, 1))

    def reset(self) -> None:
        if hasattr(self, "read"):
            self.unwatch(self.read)
            os.close(self.read)
            os.close(self.write)
            del self.read, self.write
