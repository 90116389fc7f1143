"""A device with a display, which shows what its driver says."""

from __future__ import annotations

import os
import signal
from typing import Any

from vuproc import Fd, Request
from vuproc.display import Display, DisplayDevice, DisplayInfo
from vuproc.outcome import Outcome
from vuproc.spec.vhost_user_gpu import CURSOR_SIDE, PIXEL, GpuFeature

WIDTH, HEIGHT = 32, 16
LARGE = 2048


class Screens(DisplayDevice):
    """A request is a word and numbers; the answer is what came of it, or `sent`."""

    device_id = 16
    queues = 2
    display: Display | None = None

    def config_space(self) -> bytes:
        return bytes(8) + (1).to_bytes(4, "little") + bytes(4)  # one scanout

    def display_connected(self, display: Display) -> None:
        self.display = display
        self.log.info("display connected%s", ", again" if self.recovered else "")
        display.get_features().then(lambda error: self.log.info("features: %s", error or "known"))
        display.set_features(GpuFeature.EDID | GpuFeature.DMABUF2)

    def display_gone(self, reason: str) -> None:
        self.display = None
        self.log.info("display gone: %s", reason)

    def handle(self, request: Request) -> None:
        if self.display is None:
            request.write(b"no display")
            return
        words = request.read().decode().split()
        display = self.display
        match words[0]:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "info":
                self.answer_later(request, display.get_info())
            case "edid":
                self.answer_later(request, display.get_edid(0))
            case "flush":
                self.answer_later(request, display.update_dmabuf(0, 0, 0, 4, 4))
            case "fill":
                fill(display)
                request.write(b"sent")
            case "flood":
                # More than any socket has room for.
                display.set_scanout(0, LARGE, LARGE)
                sent = 0
                try:
                    while True:
                        display.update(0, 0, 0, LARGE, LARGE, bytes(LARGE * LARGE * PIXEL))
                        sent += 1
                except Exception as error:
                    request.write(f"{sent} {type(error).__name__}".encode())
            case "dmabuf":
                with Fd(os.memfd_create("buffer", os.MFD_CLOEXEC)) as file:
                    os.write(file.fileno(), b"a buffer")
                    display.show_dmabuf(0, file, width=4, height=4, fd_stride=16, modifier=7)
                display.show_dmabuf(0, None)
                request.write(b"sent")
            case "cursor":
                display.set_cursor(0, 1, 2, 3, 4, b"\7" * (CURSOR_SIDE * CURSOR_SIDE * PIXEL))
                display.move_cursor(0, 5, 6)
                display.hide_cursor(0, 0, 0)
                request.write(b"sent")

    def answer_later(self, request: Request, outcome: Outcome[Any]) -> None:
        request.defer()

        def done(error: Exception | None) -> None:
            value = outcome.value
            if isinstance(value, list) and isinstance(value[0], DisplayInfo):
                value = [each for each in value if each.enabled]
            says = value if isinstance(value, bytes) else str(error or value).encode()
            request.finish(request.write(says))

        outcome.then(done)


class Filled(Screens):
    """The same, which shows something at once and says when that is seen."""

    def display_connected(self, display: Display) -> None:
        super().display_connected(display)
        fill(display)
        info = display.get_info()
        info.then(lambda error: self.log.info("screen 0 of %s", error or info.value))


def fill(display: Display) -> None:
    """A background, and a spot of two pixels."""
    display.set_scanout(0, WIDTH, HEIGHT)
    display.update(0, 0, 0, WIDTH, HEIGHT, b"\1\2\3\0" * (WIDTH * HEIGHT))
    display.update(0, 4, 2, 2, 1, b"\4\5\6\0" * 2)
