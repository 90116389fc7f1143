"""A source of entropy for virtual machines, served by this program: entropy.py SOCKET [FILE]."""

import os
import sys

from vuproc import Daemon, Device, FilePath, Options, Request


class EntropyOptions(Options):
    """Where the entropy comes from."""

    source: FilePath = "/dev/urandom"


class Entropy(Device):
    """virtio-rng (virtio 1.2, section 5.4): fills what the driver gives it."""

    device_id = 4
    options_type = EntropyOptions
    options: EntropyOptions

    def setup(self, queue: int) -> None:
        """Called in the worker: files are opened there."""
        self.file = os.open(self.options.source, os.O_RDONLY)

    def handle(self, request: Request) -> None:
        """One request of the driver's."""
        request.write(os.read(self.file, request.writable))


def main(socket: str, source: str = "/dev/urandom") -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    device = Entropy(EntropyOptions(source=source))
    return Daemon(device, socket, permissions=0o600, on_event=print).serve()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
