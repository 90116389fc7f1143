"""A sound card that says how loud it is: sound_level.py SOCKET."""

import sys
from array import array

from vuproc import Daemon
from vuproc.devices.sound import Sound
from vuproc.devices.sound_options import CaptureOptions, PlaybackOptions, SoundOptions


class Level(Sound):
    """Logs the loudest sample of what is played, and has the guest record a crackle."""

    def played(self, stream: int, pcm: bytes) -> None:
        """Called in the worker, for each transfer: 16 bits, two channels."""
        loudest = max(map(abs, array("h", pcm)), default=0)
        self.log.info("stream %d: %5.1f %%", stream, 100 * loudest / 32768)

    def captured(self, stream: int, count: int) -> bytes:
        """So many bytes of what the guest records; what is missing is silence."""
        return b"\x00\x10" * 2


def main(socket: str) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    options = SoundOptions(playback=(PlaybackOptions(),), capture=(CaptureOptions(),))
    device = Level(options)
    return Daemon(device, socket, permissions=0o600).serve()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
