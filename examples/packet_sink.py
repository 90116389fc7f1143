"""A network that takes all frames, and counts them. A device file:

socket: ./sink.sock
device: {type: ./packet_sink.py:Sink}
"""

from vuproc import Batch, Device

RECEIVE, TRANSMIT, HEADER = 0, 1, 12


class Sink(Device):
    """virtio-net: what the driver sends is counted, all frames of a turn in one call."""

    device_id = 1
    queues = 2
    frames = octets = 0

    def setup(self, queue: int) -> None:
        """Say twice a second how many there were."""
        if queue == TRANSMIT:
            self.call_every(0.5, self.say)

    def say(self) -> None:
        """In the log."""
        self.log.info("%d frames, %d octets", self.frames, self.octets)

    def pulls(self, queue: int) -> bool:
        """Nothing is ever sent: the buffers to receive into stay with the driver."""
        return queue == RECEIVE

    def handle_batch(self, batch: Batch) -> None:
        """Views of the frames, where the driver has put them."""
        self.frames += len(batch)
        self.octets += sum(map(len, batch.frames(HEADER)))
