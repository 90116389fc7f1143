"""A device that shares objects, and looks up those of others, as its driver says."""

from __future__ import annotations

import os
import signal
from uuid import UUID

from vuproc import Fd, Request
from vuproc.sharing import SharingDevice

CONTENT = b"a frame"
MANY = 100


class Objects(SharingDevice):
    """A request is a word and the 16 bytes of a UUID. What was found is in the log, what is made is
    the UUID itself.
    """

    device_id = 42
    queues = 2

    def shared_files(self) -> dict[str, Fd]:
        file = Fd(os.memfd_create("frame", os.MFD_CLOEXEC))
        os.write(file.fileno(), CONTENT)
        return {"frame": file}

    def handle(self, request: Request) -> None:
        data = request.read()
        word, uuid = data[:-16], UUID(bytes=data[-16:])
        match word:
            case b"share":
                self.share_object(uuid, "frame")
            case b"make":
                self.share_made(uuid, uuid.bytes)
            case b"many":
                for number in range(MANY):
                    self.share_made(UUID(int=uuid.int + number), b"one of many")
            case b"unshare":
                self.unshare_object(uuid)
            case b"find":
                self.look_up_object(uuid)
            case b"die":
                os.kill(os.getpid(), signal.SIGKILL)
        request.finish(0)

    def share_made(self, uuid: UUID, content: bytes) -> None:
        """A file that is made here, and ours for no longer than this."""
        with Fd(os.memfd_create("made", os.MFD_CLOEXEC)) as file:
            os.write(file.fileno(), content)
            self.share_object(uuid, file)

    def object_found(self, uuid: UUID, file: Fd | None) -> None:
        content = b"nothing"
        if file is not None:
            with file:
                content = os.pread(file.fileno(), 100, 0)
        self.log.info("found as %s: %s", uuid, content.decode())
