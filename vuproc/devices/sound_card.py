"""The host's sound card, by the library sounddevice (PortAudio), which is imported here only.

Its thread takes and gives bytes when the card has need of them; between it and the worker's thread
lies a buffer.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

from vuproc.devices.sound_backend import Backend
from vuproc.devices.sound_format import Params
from vuproc.sandbox.needs import Needs, existing
from vuproc.spec.sound import SampleFormat

AHEAD_S = 0.1
"""Sound that is given to the card ahead of its time: what is lost if the worker dies."""
MOST_S = 1.0
"""Recorded sound that waits for a guest which does not take it; older sound is dropped."""
_TYPES = {
    SampleFormat.U8: "uint8",
    SampleFormat.S16: "int16",
    SampleFormat.S24_3: "int24",
    SampleFormat.S32: "int32",
    SampleFormat.FLOAT: "float32",
}


def card_needs() -> Needs:
    """ALSA's devices and files, and the sockets and memory of PipeWire or PulseAudio."""
    home = os.path.expanduser("~")
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return Needs(
        files=existing(f"{home}/.config/pulse", f"{runtime}/pulse", "/dev/shm"),
        readable=existing(
            "/etc/alsa",
            "/etc/asound.conf",
            "/etc/pulse",
            "/etc/pipewire",
            "/usr/share/alsa",
            "/usr/share/pipewire",
            "/proc/asound",
            "/var/lib/alsa",
            "/var/lib/dbus",
            "/etc/machine-id",
            runtime,
            f"{home}/.asoundrc",
        ),
        devices=existing("/dev/snd"),
        network="unix",
    )


class Card(Backend):
    """A stream of the card, to play or to record."""

    def __init__(self, name: str | None, *, plays: bool) -> None:
        self._name = name
        self._plays = plays
        self._stream: Any = None
        self._lock = threading.Lock()
        self._buffer = bytearray()

    @property
    def latency(self) -> int:
        """Bytes in the buffer."""
        return len(self._buffer)

    def open(self, params: Params) -> None:
        """Open the card. Raises what PortAudio has against it."""
        import sounddevice

        self.close()
        super().open(params)
        kind = sounddevice.RawOutputStream if self._plays else sounddevice.RawInputStream
        self._stream = kind(
            samplerate=params.rate,
            channels=params.channels,
            dtype=_TYPES[params.format],
            device=self._name,
            callback=self._fill if self._plays else self._keep,
        )

    def start(self) -> None:
        """Have it call."""
        if self._stream is not None:
            self._stream.start()

    def stop(self) -> None:
        """It calls no more; what it has not played is played when it goes on."""
        if self._stream is not None:
            self._stream.stop()

    def close(self) -> None:
        """Give the card back."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._buffer.clear()

    def wait(self, count: int) -> float | None:
        """Until there is room for so many bytes, or so many have come."""
        if self._stream is None:
            return None
        rate = self.params.byte_rate
        if self._plays:
            most = max(count, int(AHEAD_S * rate))
            return max(0, len(self._buffer) + count - most) / rate
        return max(0, min(count, int(MOST_S * rate)) - len(self._buffer)) / rate

    def play(self, position: int, data: bytes) -> int:
        """Put it behind what is there."""
        self._need_stream()
        with self._lock:
            self._buffer += data
        return position

    def record(self, position: int, count: int) -> tuple[bytes, int]:
        """Take what has come."""
        self._need_stream()
        with self._lock:
            data = bytes(self._buffer[:count])
            del self._buffer[:count]
        return data + self.params.silence(count - len(data)), position

    def _need_stream(self) -> None:
        """There is none if the worker before had it, and this one could not open it again."""
        if self._stream is None:
            raise OSError(errno.ENODEV, "the card is not open")

    # What PortAudio's thread calls.

    def _fill(self, out: Any, frames: int, time: object, status: object) -> None:
        count = frames * self.params.frame_bytes
        with self._lock:
            data = bytes(self._buffer[:count])
            del self._buffer[:count]
        out[:] = data + self.params.silence(count - len(data))

    def _keep(self, came: Any, frames: int, time: object, status: object) -> None:
        with self._lock:
            self._buffer += bytes(came)
            frame = self.params.frame_bytes
            most = int(MOST_S * self.params.rate) * frame
            del self._buffer[: max(0, len(self._buffer) - most)]
