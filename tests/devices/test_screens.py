"""A device with a display: what it shows, and what a hostile front-end does with its questions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.devices.screens import HEIGHT, LARGE, WIDTH, Screens
from tests.devices.windows import Windows
from vuproc.display import GpuCodec
from vuproc.errors import DisplayLost, VuprocError
from vuproc.fd import Fd
from vuproc.spec.vhost_user_gpu import (
    DISPLAY_INFO,
    EDID,
    FLAG_REPLY,
    GPU,
    HEADER,
    GpuFeature,
    GpuRequest,
)
from vuproc.testing.display import DisplayEnd
from vuproc.testing.errors import Refused
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

ANSWER = 200
INFO = GpuRequest.GET_DISPLAY_INFO

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(Screens) as served:
        yield served


@pytest.fixture
def guest(served: Served) -> Iterator[Guest]:
    with served.guest(queues=2) as guest:
        yield guest


@pytest.fixture
def screen(guest: Guest) -> Iterator[DisplayEnd]:
    with closing(guest.front_end.open_display()) as end:
        greeted(end)
        yield end


def greeted(end: DisplayEnd) -> None:
    """What the device says to each display first."""
    assert end.receive().request == GpuRequest.GET_PROTOCOL_FEATURES
    assert end.receive().request == GpuRequest.SET_PROTOCOL_FEATURES
    assert end.chosen == GpuFeature.EDID | GpuFeature.DMABUF2


def say(guest: Guest, word: str) -> tuple[int, int]:
    return guest.submit(0, out=[word.encode()], in_=[ANSWER])


def answer(guest: Guest, token: tuple[int, int]) -> bytes:
    done = guest.wait(token)
    return done.data[0][: done.written]


# With no process.


def test_sizes_are_those_of_the_protocol() -> None:
    sizes = [row.payload.size for row in GPU.values()]
    assert sizes == [0, 8, 0, 12, 12, 20 + 16384, 12, 20, 40, 20, 4, 48]
    assert (DISPLAY_INFO.size, EDID.size) == (408, 1056)


def test_a_codec_says_what_it_can_and_no_more() -> None:
    codec = GpuCodec()
    said = codec.encode(GpuRequest.SCANOUT, scanout=1, width=2, height=3)
    assert said == HEADER.pack(request=7, flags=0, size=12) + bytes(
        [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]
    )
    with pytest.raises(ValueError, match="3 bytes of pixels, not 8"):
        codec.encode(GpuRequest.UPDATE, b"abc", scanout=0, x=0, y=0, width=2, height=1)
    with pytest.raises(ValueError, match="width 70000 is not 0 to 16384"):
        codec.encode(GpuRequest.SCANOUT, scanout=0, width=70000, height=1)
    with pytest.raises(ValueError, match="needs EDID, which is not set"):
        codec.encode(GpuRequest.GET_EDID, scanout=0)


def test_replies_may_come_a_byte_at_a_time_or_together() -> None:
    codec = GpuCodec()
    codec.features = GpuFeature.EDID
    codec.encode(INFO)
    codec.encode(GpuRequest.GET_EDID, scanout=0)
    data = HEADER.pack(request=3, flags=FLAG_REPLY, size=408) + DISPLAY_INFO.pack()
    data += HEADER.pack(request=11, flags=FLAG_REPLY, size=1056) + EDID.pack(size=3, edid=b"abc")
    found = [reply for at in range(len(data)) for reply in codec.feed(data[at : at + 1])]
    assert [reply.get("size") for reply in found] == [None, 3]


@pytest.mark.parametrize(
    ("request_", "flags", "size"),
    [(3, 0, 408), (3, 5, 408), (11, 4, 408), (3, 4, 407), (3, 4, 0), (3, 4, 0xFFFFFFFF)],
)
def test_a52_what_is_no_reply_ends_the_display(request_: int, flags: int, size: int) -> None:
    codec = GpuCodec()
    codec.encode(INFO)
    with pytest.raises(DisplayLost):
        codec.feed(HEADER.pack(request=request_, flags=flags, size=size))


def test_a52_a_reply_that_nobody_asked_for_ends_the_display() -> None:
    with pytest.raises(DisplayLost, match="no reply is due"):
        GpuCodec().feed(HEADER.pack(request=3, flags=FLAG_REPLY, size=408))


def test_a_follower_passes_over_what_the_last_worker_has_asked_for() -> None:
    codec = GpuCodec(follows=True)
    features = HEADER.pack(request=1, flags=FLAG_REPLY, size=8) + bytes([3]) + bytes(7)
    info = HEADER.pack(request=3, flags=FLAG_REPLY, size=408) + DISPLAY_INFO.pack()
    assert codec.feed(features + info) == []
    codec.encode(GpuRequest.GET_PROTOCOL_FEATURES)
    data = info + features + features
    found = [reply for at in range(len(data)) for reply in codec.feed(data[at : at + 1])]
    assert found == [{"value": 3}]


@pytest.mark.parametrize(("request_", "flags", "size"), [(3, 5, 408), (3, 4, 407), (2, 4, 0)])
def test_a52_a_follower_is_no_less_strict(request_: int, flags: int, size: int) -> None:
    with pytest.raises(DisplayLost, match="no reply is due"):
        GpuCodec(follows=True).feed(HEADER.pack(request=request_, flags=flags, size=size))


# Served.


@pytest.mark.proves("GPU_SET_SOCKET", front_end="built-in")
def test_what_is_shown_is_seen(guest: Guest, screen: DisplayEnd) -> None:
    assert answer(guest, say(guest, "fill")) == b"sent"
    for request in (GpuRequest.SCANOUT, GpuRequest.UPDATE, GpuRequest.UPDATE):
        assert screen.receive().request == request
    assert (screen.screens[0].width, screen.screens[0].height) == (WIDTH, HEIGHT)
    assert screen.screens[0].pixel(3, 2) == screen.screens[0].pixel(6, 2) == b"\1\2\3\0"
    assert screen.screens[0].pixel(4, 2) == screen.screens[0].pixel(5, 2) == b"\4\5\6\0"


def test_questions_are_answered(guest: Guest, screen: DisplayEnd) -> None:
    for word, says in (
        ("info", b"[DisplayInfo(x=0, y=0, width=640, height=480, enabled=True)]"),
        ("edid", screen.edid),
        ("flush", b"None"),
    ):
        token = say(guest, word)
        screen.receive()
        assert answer(guest, token) == says


def test_cursor_and_buffers_go_as_they_are(guest: Guest, screen: DisplayEnd) -> None:
    assert answer(guest, say(guest, "cursor")) == b"sent"
    shown = screen.receive()
    assert (shown.request, shown.fields["hot_y"]) == (GpuRequest.CURSOR_UPDATE, 4)
    assert shown.fields["image"] == b"\7" * 16384
    assert [screen.receive().request for _ in range(2)] == [
        GpuRequest.CURSOR_POS,
        GpuRequest.CURSOR_POS_HIDE,
    ]
    assert answer(guest, say(guest, "dmabuf")) == b"sent"
    shown = screen.receive()
    assert (shown.request, shown.fields["modifier"]) == (GpuRequest.DMABUF_SCANOUT2, 7)
    (file,) = shown.fds
    with file:
        assert os.pread(file.fileno(), 20, 0) == b"a buffer"
    assert screen.receive().fds == ()


def test_a_display_that_is_not_looked_at_holds_nobody_up(
    served: Served, guest: Guest, screen: DisplayEnd
) -> None:
    sent, error = answer(guest, say(guest, "flood")).split()
    assert (error, int(sent) >= 4) == (b"DisplayBusy", True)
    guest.stop_queue(0)
    guest.start_queue(0)
    # All of what was taken comes, and in order.
    assert screen.receive().request == GpuRequest.SCANOUT
    for _ in range(int(sent)):
        assert len(screen.receive().pixels) == LARGE * LARGE * 4
    assert answer(guest, say(guest, "fill")) == b"sent"
    assert screen.receive().request == GpuRequest.SCANOUT


def test_a_ring_stops_though_a_request_waits_for_a_reply(
    served: Served, guest: Guest, screen: DisplayEnd
) -> None:
    """A front-end that waits for the stop replies to nothing: what waits is given up by then."""
    token = say(guest, "info")
    assert screen.take().request == INFO
    worker = served.status().queues[0].pid
    guest.stop_queue(0)
    assert b"a ring is to stop" in answer(guest, token)
    assert served.status().queues[0].pid == worker
    screen.reply(INFO, DISPLAY_INFO.pack())
    guest.start_queue(0)
    token = say(guest, "info")
    screen.receive()
    assert answer(guest, token).startswith(b"[DisplayInfo")


def test_the_display_outlives_worker_and_master() -> None:
    with (
        serve(Screens, arguments=("--supervised",)) as served,
        served.guest(queues=2) as guest,
        closing(guest.front_end.open_display()) as screen,
    ):
        greeted(screen)
        served.kill_worker(0)
        greeted(screen)
        os.kill(served.status().pid, signal.SIGKILL)
        greeted(screen)
        assert answer(guest, say(guest, "fill")) == b"sent"
        assert screen.receive().request == GpuRequest.SCANOUT


def test_a_reply_that_comes_after_its_worker_has_died_does_no_harm() -> None:
    with (
        serve(Screens) as served,
        served.guest(queues=2) as guest,
        closing(guest.front_end.open_display()) as screen,
    ):
        greeted(screen)
        token = say(guest, "info")
        assert screen.take().request == INFO
        served.kill_worker(0)
        screen.reply(INFO, DISPLAY_INFO.pack())
        greeted(screen)
        assert screen.receive().request == INFO
        assert answer(guest, token).startswith(b"[DisplayInfo(x=0, y=0, width=640")
        assert answer(guest, say(guest, "fill")) == b"sent"


def test_another_display_takes_its_place(served: Served, guest: Guest, screen: DisplayEnd) -> None:
    with closing(guest.front_end.open_display()) as other:
        greeted(other)
        with pytest.raises((VuprocError, ConnectionResetError)):
            screen.receive()
        served.wait_for_line("display gone: the display was closed")
        assert answer(guest, say(guest, "fill")) == b"sent"
        assert other.receive().request == GpuRequest.SCANOUT


def test_the_end_of_the_display_ends_no_more(served: Served, guest: Guest) -> None:
    with closing(guest.front_end.open_display()) as screen:
        greeted(screen)
        token = say(guest, "info")
        screen.take()
    assert answer(guest, token) == b"closed by the front-end"
    served.wait_for_line("display gone: closed by the front-end")
    assert answer(guest, say(guest, "info")) == b"no display"


def test_a52_a_reply_that_makes_no_sense_ends_the_display_and_no_more(
    served: Served, guest: Guest, screen: DisplayEnd
) -> None:
    token = say(guest, "info")
    screen.take()
    screen.reply(INFO, b"", size=12)
    assert answer(guest, token) == b"12 bytes came for GET_DISPLAY_INFO, not 408"
    assert answer(guest, say(guest, "info")) == b"no display"


def test_a52_a_socket_that_is_none_and_a_device_without_a_display(guest: Guest) -> None:
    with Fd(os.memfd_create("none", os.MFD_CLOEXEC)) as file, pytest.raises(Refused):
        guest.front_end.request("GPU_SET_SOCKET", [file])
    with serve(Windows) as served, served.guest() as other, pytest.raises(Refused):
        other.front_end.open_display()
