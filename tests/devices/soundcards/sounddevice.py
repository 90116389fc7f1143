"""A card in place of the library's: it plays into a file, and records what it has played."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

FRAMES = 480


class PortAudioError(Exception):
    """What the library raises."""


class _Stream:
    def __init__(
        self, *, samplerate: int, channels: int, dtype: str, device: str | None, callback: Any
    ) -> None:
        if device == "none":
            raise PortAudioError("no such card")
        assert dtype == "int16"
        self._bytes = FRAMES * channels * 2
        self._pause_s = FRAMES / samplerate
        self._callback: Callable[..., None] = callback
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause_s):
            self._call()

    def _call(self) -> None:
        raise NotImplementedError


class RawOutputStream(_Stream):
    def _call(self) -> None:
        out = bytearray(self._bytes)
        self._callback(memoryview(out), FRAMES, None, None)
        with open(os.environ["SOUND_CARD_OUT"], "ab") as file:
            file.write(out)


class RawInputStream(_Stream):
    def _call(self) -> None:
        self._callback(memoryview(b"\x05" * self._bytes), FRAMES, None, None)
