"""A front panel whose lines answer each other: `type: ./gpio_panel.py:Panel` in a device file with
lines named MOTOR and TURNS.
"""

from vuproc.devices.gpio import REQUESTS, Gpio

TURNS_A_SECOND = 10


class Panel(Gpio):
    """While MOTOR is high, TURNS goes up and down."""

    def setup(self, queue: int) -> None:
        """Also in a worker that follows a dead one: the lines are as they were."""
        super().setup(queue)
        if queue == REQUESTS:
            self.call_every(1 / (2 * TURNS_A_SECOND), self.turn)

    def turn(self) -> None:
        """Half a turn."""
        if self.level("MOTOR"):
            self.set_line("TURNS", 1 - self.level("TURNS"))

    def line_changed(self, name: str, value: int) -> None:
        """Somebody has set a line, the driver or we."""
        if name == "MOTOR":
            self.log.info("the motor is %s", "on" if value else "off")
