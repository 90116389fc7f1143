"""A keyboard that types by itself: a device file has `type: ./input_robot.py:Robot`."""

from vuproc.devices.input import STATUS, Input


class Robot(Input):
    """Types a name once there is a driver, and ends the session when caps lock is switched on."""

    def ring_started(self, queue: int) -> None:
        """The driver is there."""
        super().ring_started(queue)
        if queue == STATUS and not self.recovered:
            self.call_later(5.0, lambda: self.type_text("root\n"))

    def status(self, type: int, code: int, value: int) -> None:
        """A light, by its code: 0 num lock, 1 caps lock, 2 scroll lock."""
        super().status(type, code, value)
        if code == 1 and value:
            self.press("leftctrl")
            self.tap("d")
            self.release("leftctrl")
