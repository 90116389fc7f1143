"""Networks in Python: what comes in batches, and goes back."""

from __future__ import annotations

from vuproc.devices.net import Net
from vuproc.devices.net_native import Frames


class Mirror(Net):
    """Sends each frame back with its bytes from behind; `!` as the first makes it fail."""

    kept: list[Frames] | None = None

    def frames(self, pair: int, frames: Frames) -> None:
        if frames.data[:1].tobytes() == b"!":
            raise ValueError("no such frames")
        # Whoever keeps some has them as they were.
        self.kept = [*(self.kept or [])[-3:], frames]
        for old in self.kept:
            assert frames_of(old) == [bytes(each) for each in old]
        self.send_frames(pair, [bytes(each)[::-1] for each in frames])


class Returning(Net):
    """Sends each batch back as it is."""

    def frames(self, pair: int, frames: Frames) -> None:
        self.send_frames(pair, frames)


class Counting(Net):
    """A sink, which says how many there were when it is asked by a frame that begins with `?`."""

    total = 0

    def frames(self, pair: int, frames: Frames) -> None:
        self.total += len(frames)
        if frames[-1][:1].tobytes() == b"?":
            self.send_frames(pair, [self.total.to_bytes(8, "little") + bytes(52)])


def frames_of(frames: Frames) -> list[bytes]:
    """The same by `data` and `ends`."""
    starts = (0, *frames.ends[:-1])
    return [bytes(frames.data[a:b]) for a, b in zip(starts, frames.ends, strict=True)]
