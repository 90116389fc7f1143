"""Sound devices whose sound is Python's own, and such that die at a certain step."""

from __future__ import annotations

import os
import signal

from vuproc.devices.sound import Sound
from vuproc.devices.sound_options import SoundOptions
from vuproc.options import FilePath
from vuproc.spec.sound import CONTROL, TRANSMIT, SoundRequest


class Hearing(Sound):
    """Says the loudest byte of what is played, and gives what the guest records."""

    def played(self, stream: int, pcm: bytes) -> None:
        if pcm.startswith(b"raise"):
            raise ValueError("not to be heard")
        self.log.info("stream %d: %s, up to %d", stream, self.params(stream), max(pcm))

    def captured(self, stream: int, count: int) -> bytes | None:
        return b"\x07" * (count // 2)


class DyingOptions(SoundOptions, kw_only=True):
    marks: FilePath


class Dying(Sound):
    """Dies before or after it has shown a transfer, as the transfer says, and with PREPARE and
    START: once for each, of which there is a mark in a directory.
    """

    options_type = DyingOptions
    options: DyingOptions
    when = b""

    def played(self, stream: int, pcm: bytes) -> None:
        self.when = pcm[:6].strip()

    def publish(self, queue: int) -> None:
        if queue == TRANSMIT and self.when == b"before":
            self.die("before")
        super().publish(queue)
        if queue == TRANSMIT and self.when == b"after":
            self.die("after")

    def die(self, why: str) -> None:
        try:
            os.close(os.open(os.path.join(self.options.marks, why), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def setup(self, queue: int) -> None:
        super().setup(queue)
        if queue != CONTROL:
            return
        stream = self._streams[0]
        command = stream.command

        def dying(code: SoundRequest, again: bool) -> object:
            status = command(code, again)
            self.die(code.name)
            if code == SoundRequest.PCM_START:
                self.call_soon(lambda: self.die("START, shown"))
            return status

        stream.command = dying  # type: ignore[method-assign, assignment]
