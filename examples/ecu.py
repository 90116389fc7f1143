"""A CAN bus with one engine on it, which tells its speed. In a device file:

socket: ./ecu.sock
device: {type: ./ecu.py:Engine}
"""

from vuproc.devices.can import Can
from vuproc.devices.can_frame import Frame

REQUEST, RESPONSE, STATUS = 0x7DF, 0x7E8, 0x280
CURRENT_DATA, ENGINE_SPEED = 0x01, 0x0C
"""On-board diagnostics: a mode and what it is asked for (SAE J1979)."""
PERIOD_S = 0.1


class Engine(Can):
    """virtio-can: a bus with an engine control unit."""

    speed = 800
    """Revolutions a minute."""

    def setup(self, queue: int) -> None:
        """Called in the worker, once for each queue."""
        super().setup(queue)
        if queue == 0:
            self.call_every(PERIOD_S, self.tell)

    def tell(self) -> None:
        """A frame of its own, again and again, for whoever listens."""
        self.send(Frame(STATUS, (self.speed * 4).to_bytes(2, "big")))

    def frame(self, frame: Frame) -> None:
        """The guest has sent a frame."""
        if frame.id == REQUEST and frame.data[:3] == bytes((2, CURRENT_DATA, ENGINE_SPEED)):
            answer = bytes((4, 0x40 + CURRENT_DATA, ENGINE_SPEED))
            self.send(Frame(RESPONSE, answer + (self.speed * 4).to_bytes(2, "big")))
