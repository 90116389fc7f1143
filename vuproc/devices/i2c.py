"""virtio-i2c: a bus of the host, or one with simulated chips."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from vuproc import shared
from vuproc.device import Device, Timer
from vuproc.devices.control import Control
from vuproc.devices.i2c_chips import Chip
from vuproc.devices.i2c_host import HostBus
from vuproc.devices.i2c_options import I2cOptions
from vuproc.devices.i2c_request import answer
from vuproc.devices.i2c_simulated import SimulatedBus, files_of, problem_of
from vuproc.errors import FileRefused, RequestAbandoned
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.sandbox.needs import Needs
from vuproc.spec.i2c import I2cFeature

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MOST_ATTEMPTS = 3
"""A request over which so many workers have died has failed."""
MOST_SAID = 64 << 10
"""Bytes of a chip that a script is told at once: a socket takes the answer as a whole."""
I2C_FUNCS = 0x0705
"""Linux, i2c-dev.h: what the adapter can do, as a long."""
FUNC_I2C = 0x0001
"""It can do any transaction (Linux, i2c.h)."""


class I2c(Device):
    """virtio-i2c: an adapter whose bus is the host's, or has simulated chips.

    One queue of requests (virtio 1.3, section 5.16). A subclass whose `chips` returns others has
    those on its bus.
    """

    device_id = 34
    queues = 1
    features = I2cFeature.ZERO_LENGTH_REQUEST
    options_type: ClassVar[type[Options]] = I2cOptions
    options: I2cOptions

    patience_s: ClassVar[float] = 0.2
    """Seconds that the rest of a group is waited for, on a bus of the host. Linux waits for those
    that had room in the queue before it sends the others: QEMU 7.2 has room for four."""

    def __init__(self, options: I2cOptions | None = None) -> None:
        super().__init__(options)
        self._made = self.chips()
        self._bus: SimulatedBus | HostBus | None = None
        self._control: Control | None = None
        self._accepted = True
        self._patience: Timer | None = None

    def chips(self) -> dict[int, Chip]:
        """The simulated chips by address, made anew: called once in the master and each worker."""
        return {chip.address: chip.make() for chip in self.options.chips}

    # What the master asks.

    def sandbox_needs(self) -> Needs:
        """Commands to what is of the host; it is open already."""
        bus = self.options.bus
        return self.needs if bus is None else self.needs.with_more(Needs(devices=(bus,)))

    def follows_at_once(self) -> bool:
        """Bus and socket are shared; what a script has connected is its own affair."""
        return type(self) is I2c

    def shared_files(self) -> dict[str, Fd]:
        """The bus, or the chips' memory; and the socket of scripts."""
        with shared.gathering() as files:
            for name, file in self.open_bus().items():
                files[self._named(name)] = file
            if self.options.control is not None:
                files[self._named("control")] = shared.listening_socket(
                    self.options.control, option="control"
                )
        return files

    def open_bus(self) -> dict[str, Fd]:
        """The files of the bus. Raises FileRefused."""
        if self.options.bus is not None:
            return {"bus": _opened(self.options.bus)}
        problem = problem_of(self._made)
        if problem is not None:
            raise FileRefused("chips", problem)
        return files_of(self._made)

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """Chips go on if they are the same; a socket cannot be had a second time."""
        sizes = {f"chip-{at:x}": chip.memory_size for at, chip in self._made.items()}
        wanted = {"bus"} if self.options.bus is not None else {"state"}
        wanted |= {name for name, size in sizes.items() if size}
        wanted |= set() if self.options.control is None else {"control"}
        return left.keys() == {self._named(name) for name in wanted}

    def _named(self, what: str) -> str:
        chips = [
            (address, type(chip).__qualname__, chip.memory_size, chip.file)
            for address, chip in self._made.items()
        ]
        return shared.named(f"i2c-{what}", self.options.bus, self.options.control, chips)

    # The work.

    def setup(self, queue: int) -> None:
        """Be on the bus."""
        self._bus = self.make_bus()
        listener = self.shared.get(self._named("control"))
        if listener is not None:
            self._control = Control(self, listener, self.controlled)

    def make_bus(self) -> SimulatedBus | HostBus:
        """The bus of this worker."""
        if self.options.bus is not None:
            return HostBus(
                self.shared[self._named("bus")],
                self.finish_together,
                lambda problem: self.log.debug("%s", problem),
            )
        ending = self._named("")[len("i2c-") :]
        return SimulatedBus(
            self._made,
            {
                name.removeprefix("i2c-").removesuffix(ending): file
                for name, file in self.shared.items()
            },
        )

    def teardown(self) -> None:
        """Leave those who talk to us."""
        if self._control is not None:
            self._control.close()

    def features_acked(self, features: int) -> None:
        """A driver without ZERO_LENGTH_REQUEST has another idea of what a request is (5.16.6.4)."""
        self._accepted = bool(features & I2cFeature.ZERO_LENGTH_REQUEST)
        if not self._accepted:
            self.log.warning("the driver does not take ZERO_LENGTH_REQUEST: its requests fail")

    def reset(self) -> None:
        """What belongs together has ended."""
        if self._bus is not None:
            self._bus.reset()

    def ring_stopping(self, queue: int) -> None:
        """Give back what waits for the rest of its group."""
        if isinstance(self._bus, HostBus):
            self._bus.let_go()

    def handle(self, request: Request) -> None:
        """One segment of a transaction."""
        assert self._bus is not None
        if self._accepted:
            self._bus.begin(request)
            self._wait(self._bus)
        else:
            answer(request, None)

    def _wait(self, bus: SimulatedBus | HostBus) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if isinstance(bus, HostBus) and bus.waits:
            self._patience = self.call_later(self.patience_s, bus.serve_part)

    def fail(self, request: Request, error: BaseException) -> None:
        """What a dead worker had begun goes on where it can; what went wrong has failed."""
        assert self._bus is not None
        if isinstance(error, RequestAbandoned) and error.attempts < MOST_ATTEMPTS:
            self._bus.again(request)
        else:
            self._bus.failed(request)
        if not request.finished:
            request.finish()

    # What scripts say.

    def controlled(self, words: list[str]) -> str:
        """The answer to a line of the control socket. ValueError if it makes no sense."""
        match words:
            case ["set", address, name, value]:
                self._chip(address).set(name, value)
                return "ok"
            case ["read", address, at, count]:
                return self._part(address, int(at, 0), int(count, 0)).hex()
            case ["write", address, at, content]:
                data = bytes.fromhex(content)
                self._part(address, int(at, 0), len(data))[:] = data
                return "ok"
        raise ValueError("it is none of set, read, write with an address and what follows")

    def _chip(self, address: str) -> Chip:
        chip = self._made.get(int(address, 0))
        if chip is None:
            raise ValueError(f"there is no chip {address[:40]}")
        return chip

    def _part(self, address: str, at: int, count: int) -> memoryview:
        chip = self._chip(address)
        if not 0 <= at <= at + count <= chip.memory_size:
            raise ValueError(f"the chip has {chip.memory_size} bytes")
        if count > MOST_SAID:
            raise ValueError(f"at most {MOST_SAID} bytes at a time")
        return chip.memory[at : at + count]


def _opened(path: str) -> Fd:
    """The bus, open. Raises FileRefused, of `bus`."""
    try:
        file = Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        try:
            able = int.from_bytes(fcntl.ioctl(file.fileno(), I2C_FUNCS, bytes(8)), "little")
        except OSError as error:
            file.close()
            raise FileRefused("bus", f"{path}: not an I2C bus") from error
    except OSError as error:
        raise FileRefused("bus", f"{path}: {error.strerror}") from error
    if not able & FUNC_I2C:
        file.close()
        raise FileRefused("bus", f"{path}: an adapter for SMBus alone, which takes no transactions")
    return file
