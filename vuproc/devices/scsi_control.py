"""The control queue and the event queue of a SCSI host (virtio 1.3, 5.6.6.2 and 5.6.6.3)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from vuproc.device import Device
from vuproc.devices.scsi_options import MAX_REQUEST_QUEUES, MAX_UNITS
from vuproc.devices.scsi_unit import Unit, UnitState, address_of, lun_of
from vuproc.devices.scsi_units import Units
from vuproc.spec.scsi import (
    AN_REQUEST,
    AN_RESPONSE,
    CONTROL,
    EVENT,
    EVENT_INFO,
    EVENTS_MISSED,
    FIRST_REQUEST,
    TMF_REQUEST,
    ControlType,
    ResetReason,
    ScsiEvent,
    ScsiFeature,
    ScsiResponse,
    Tmf,
)
from vuproc.spec.scsi_commands import Sense

if TYPE_CHECKING:
    from vuproc.fd import Fd
    from vuproc.shm.request import Request

LOOK_S = 0.001
"""Seconds between two looks whether other workers have finished what the driver had posted."""
RING_S = 5.0
"""Seconds in which the worker that follows one that died gets the ring it had. If it has none by
then the driver has taken it away meanwhile.
"""
MOST_WAITING = 64
"""Task management functions that may wait for that; others are taken later."""

_HOTPLUG, _CHANGE = int(ScsiFeature.HOTPLUG), int(ScsiFeature.CHANGE)
_RESETS = (Tmf.I_T_NEXUS_RESET, Tmf.LOGICAL_UNIT_RESET)
_CAPACITY = int(Sense.CAPACITY_CHANGED)
_CAPACITY_REASON = _CAPACITY >> 8 | (_CAPACITY & 0xFF) << 8
"""The sense code and its qualifier as an event has them."""
ONE = (1).to_bytes(8, "little")
"""What rings an eventfd."""
LAYOUT = 2
"""Of HostState: another one has another number, so that a master does not go on with it."""


class HostState(ctypes.Structure):
    """Shared by all workers. By request queue: how often the worker of the control queue has asked
    that what was posted is finished, and up to which time it is; and whether there is a ring.
    Then the sizes that the driver has chosen.
    """

    _fields_: ClassVar = [
        ("asked", ctypes.c_uint32 * MAX_REQUEST_QUEUES),
        ("done", ctypes.c_uint32 * MAX_REQUEST_QUEUES),
        ("rings", ctypes.c_uint32 * MAX_REQUEST_QUEUES),
        ("sense_size", ctypes.c_uint32),
        ("cdb_size", ctypes.c_uint32),
        ("units", UnitState * MAX_UNITS),
    ]


class Control:
    """Carries out task management functions, by letting what they are about come to its end.

    The driver may use its buffers again once a function is answered. So whatever was posted before
    it is finished by then, by whichever worker has it. bells: eventfds of the request queues.
    own: those of them that are this worker's.
    """

    def __init__(
        self,
        device: Device,
        units: Units,
        state: HostState,
        bells: Sequence[Fd],
        own: Mapping[int, Asked],
    ) -> None:
        self._device = device
        self._units = units
        self._state = state
        self._bells = bells
        self._own = own
        self._waiting: list[tuple[Request, dict[int, int]]] = []
        """Requests, and the counts that queues are to come to."""
        self._looks = False

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return len(self._waiting) >= MOST_WAITING

    def serve(self, request: Request) -> None:
        """Serve a request of the control queue."""
        kind = int.from_bytes(request.read(4), "little")
        if kind == ControlType.TMF:
            self._manage(request, request.read(TMF_REQUEST.size - 4))
            return
        answer = b""
        if kind in (ControlType.AN_QUERY, ControlType.AN_SUBSCRIBE):
            # There is nothing to be notified of: an AN_REQUEST is answered with no events.
            whole = len(request.read(AN_REQUEST.size - 4)) == AN_REQUEST.size - 4
            response = ScsiResponse.OK if whole else ScsiResponse.FAILURE
            answer = AN_RESPONSE.pack(event_actual=0, response=response)
        if request.writable_total >= len(answer):
            request.write(answer)
        request.finish()

    def _manage(self, request: Request, rest: bytes) -> None:
        if len(rest) < TMF_REQUEST.size - 4:
            self._answer(request, ScsiResponse.FAILURE)
            return
        said = TMF_REQUEST.unpack(bytes(4) + rest)
        address = address_of(said["lun"])
        mates = [] if address is None else self._units.here(address[0])
        unit = self._units.at(address)
        if not mates:
            self._answer(request, ScsiResponse.BAD_TARGET)
        elif unit is None and said["subtype"] != Tmf.I_T_NEXUS_RESET:
            self._answer(request, ScsiResponse.INCORRECT_LUN)
        elif said["subtype"] not in list(Tmf) or said["subtype"] == Tmf.CLEAR_ACA:
            self._answer(request, ScsiResponse.FUNCTION_REJECTED)
        else:
            if said["subtype"] in _RESETS:
                for each in mates if unit is None else [unit]:
                    each.raise_attention(Sense.RESET_OCCURRED)
            self._wait(request)

    def _wait(self, request: Request) -> None:
        """Have all queues finish what they have, and answer then that it is not there any more."""
        wanted = {}
        for number, bell in enumerate(self._bells):
            self._state.asked[number] += 1
            wanted[number] = int(self._state.asked[number])
            own = self._own.get(FIRST_REQUEST + number)
            if own is None:
                os.write(bell.fileno(), ONE)
            else:
                own.look()
        self._waiting.append((request, wanted))
        self._look()

    def _look(self) -> None:
        was_full = self.full
        waiting, self._waiting = self._waiting, []
        for request, wanted in waiting:
            if request.finished:
                continue  # the ring broke
            if all(_reached(self._state.done[at], count) for at, count in wanted.items()):
                self._answer(request, ScsiResponse.OK)
            else:
                self._waiting.append((request, wanted))
        if was_full and not self.full:
            self._device.call_soon(lambda: self._device.available(CONTROL))
        if self._waiting and not self._looks:
            self._looks = True
            self._device.call_later(LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._looks = False
        self._look()

    def give_back(self) -> None:
        """The queue is to stop: what waits comes again."""
        for request, _ in self._waiting:
            if not request.finished:
                request.release()
        self._waiting.clear()

    def _answer(self, request: Request, response: int) -> None:
        request.write(bytes((response,)))
        request.finish()


def _reached(count: int, wanted: int) -> bool:
    """Whether a count of 32 bits has come to another, or beyond."""
    return (count - wanted) & 0xFFFFFFFF < 1 << 31


class Asked:
    """A request queue in its worker, which may be asked to finish what was posted on it.

    finish: do so. A worker that follows one that died does it once it has the ring, too.
    """

    def __init__(
        self, device: Device, queue: int, state: HostState, bell: Fd, finish: Callable[[int], None]
    ) -> None:
        self._device = device
        self._number = queue - FIRST_REQUEST
        self._state = state
        self._bell = bell
        self._finish = finish
        self._has_ring = False
        device.watch(bell, self._rung)
        if state.rings[self._number]:
            device.call_later(RING_S, self._ring_is_gone)
        device.call_soon(self.look)

    def ring(self, there: bool) -> None:
        """The ring has come, or gone."""
        self._has_ring = there
        self._state.rings[self._number] = there
        self._device.call_soon(self.look)

    def _ring_is_gone(self) -> None:
        if not self._has_ring:
            self.ring(False)

    def _rung(self) -> None:
        hush(self._bell)
        self.look()

    def look(self) -> None:
        """Do what is asked, unless the ring is still to come."""
        asked = self._state.asked[self._number]
        if self._state.done[self._number] == asked:
            return
        if self._has_ring or not self._state.rings[self._number]:
            self._finish(FIRST_REQUEST + self._number)
            self._state.done[self._number] = asked


def hush(bell: Fd) -> None:
    """Take back what has rung."""
    try:
        os.read(bell.fileno(), len(ONE))
    except BlockingIOError:
        pass


class Events:
    """Tells the driver of units that came, went or have another size.

    It is how things are by then, so one that is told again, after a death, does no harm.
    """

    def __init__(self, device: Device, units: Units) -> None:
        self._device = device
        self._units = units
        self.features: int | None = None
        """What the driver has chosen, once it has."""

    def tell(self) -> None:
        """Tell what is due, as far as there are buffers; a driver that does not know such events
        is told nothing.
        """
        if self.features is None:
            return
        for unit in self._units:
            state = unit.state
            if state.plug_due != state.plug_told:
                due = state.plug_due
                reason = ResetReason.RESCAN if state.plugged else ResetReason.REMOVED
                missed = due - state.plug_told != 1
                if self.features & _HOTPLUG and not self._told(
                    unit, ScsiEvent.TRANSPORT_RESET, reason, missed
                ):
                    return
                state.plug_told = due
            if state.size_due != state.size_told:
                due = state.size_due
                if self.features & _CHANGE and not self._told(
                    unit, ScsiEvent.PARAM_CHANGE, _CAPACITY_REASON, False
                ):
                    return
                state.size_told = due

    def _told(self, unit: Unit, event: int, reason: int, missed: bool) -> bool:
        """Write one event into a buffer; False: there is none."""
        while (buffer := self._device.take(EVENT)) is not None:
            if buffer.writable_total < EVENT_INFO.size:
                buffer.finish(0)
                continue
            event |= EVENTS_MISSED if missed else 0
            buffer.write(EVENT_INFO.pack(event=event, lun=lun_of(unit.address), reason=reason))
            buffer.finish()
            self._device.publish(EVENT)
            return True
        return False
