"""The sound device, with the driver of the tests."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import struct
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.devices.hearing import Dying, Hearing
from vuproc.devices import sound_wav
from vuproc.devices.sound import Sound
from vuproc.devices.sound_backend import Tone
from vuproc.devices.sound_card import Card
from vuproc.devices.sound_format import Params
from vuproc.devices.sound_options import PlaybackOptions, SoundOptions
from vuproc.devices.sound_stream import MOST_BYTES
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.sound import (
    CHMAP_INFO,
    CONFIG,
    CONTROL,
    HEADER,
    JACK_INFO,
    PCM_HEADER,
    PCM_INFO,
    PCM_SET_PARAMS,
    QUERY_INFO,
    QUEUES,
    RATES,
    RECEIVE,
    SAMPLE_BYTES,
    TRANSFER,
    TRANSFER_STATUS,
    TRANSMIT,
    SampleFormat,
    SoundRequest,
    SoundStatus,
)
from vuproc.testing import Guest, Served, serve
from vuproc.testing.memory import RamRegion

pytestmark = pytest.mark.timeout(120)

BOUND_S = 30.0
FAST = 192_000
"""The rate of streams that tests do not want to wait for."""
PERIOD = 1920
"""Bytes of 2.5 ms of such a stream, two channels of 16 bits."""
BAD, GOOD = SoundStatus.BAD_MSG, SoundStatus.OK


def sound(
    playback: Sequence[dict[str, Any]] = (), capture: Sequence[dict[str, Any]] = (), **more: Any
) -> AbstractContextManager[Served]:
    return serve({"type": "sound", "playback": [*playback], "capture": [*capture]}, **more)


def fast(**options: Any) -> dict[str, Any]:
    return {"rates": [FAST], **options}


class Driver:
    """What Linux says on the control queue, and its transfers."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def ask(self, request: bytes, room: int = 4) -> tuple[SoundStatus, bytes]:
        content = self.guest.do(CONTROL, [request], [room]).content
        return SoundStatus(HEADER.unpack(content)["code"]), content[HEADER.size :]

    def info(self, code: SoundRequest, count: int, size: int, start: int = 0) -> list[bytes]:
        query = QUERY_INFO.pack(code=code, start_id=start, count=count, size=size)
        status, told = self.ask(query, 4 + count * size)
        assert (status, len(told)) == (GOOD, count * size)
        return [told[at : at + size] for at in range(0, len(told), size)]

    def choose(
        self,
        stream: int = 0,
        rate: int = FAST,
        format: SampleFormat = SampleFormat.S16,
        channels: int = 2,
        **more: int,
    ) -> SoundStatus:
        fields = {"buffer_bytes": 4 * PERIOD, "period_bytes": PERIOD, **more}
        request = PCM_SET_PARAMS.pack(
            code=SoundRequest.PCM_SET_PARAMS,
            stream_id=stream,
            channels=channels,
            format=format,
            rate=RATES.index(rate),
            **fields,
        )
        return self.ask(request)[0]

    def command(self, name: str, stream: int = 0) -> SoundStatus:
        code = SoundRequest[f"PCM_{name}"]
        return self.ask(PCM_HEADER.pack(code=code, stream_id=stream))[0]

    def start(self, stream: int = 0, **params: Any) -> None:
        assert self.choose(stream, **params) == GOOD
        assert [self.command(name, stream) for name in ("PREPARE", "START")] == [GOOD, GOOD]

    def send(self, data: bytes, stream: int = 0) -> tuple[int, int]:
        return self.guest.submit(TRANSMIT, [TRANSFER.pack(stream_id=stream), data], [8])

    def sent(self, token: tuple[int, int]) -> SoundStatus:
        completion = self.guest.wait(token)
        return SoundStatus(TRANSFER_STATUS.unpack(completion.content)["status"])

    def want(self, count: int, stream: int = 0) -> tuple[int, int]:
        return self.guest.submit(RECEIVE, [TRANSFER.pack(stream_id=stream)], [count, 8])

    def got(self, token: tuple[int, int]) -> bytes:
        completion = self.guest.wait(token)
        data, status = completion.data
        assert TRANSFER_STATUS.unpack(status)["status"] == GOOD
        return data[: completion.written - len(status)]


def pcm(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def recorded(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        return file.readframes(file.getnframes())


def made(path: Path, data: bytes, rate: int = FAST) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not what():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def pair() -> Iterator[Served]:
    """Two streams to play to, one to record from."""
    with sound([fast(), {"formats": ["u8", "float"], "channels": 6}], [fast()]) as served:
        yield served


def driven(served: Served, **options: Any) -> AbstractContextManager[Guest]:
    return served.guest(queues=QUEUES, **options)


# What there is.


def test_streams_jacks_and_channel_maps_are_told(pair: Served) -> None:
    with driven(pair) as guest:
        driver = Driver(guest)
        assert CONFIG.unpack(guest.config(CONFIG.size)) == {"jacks": 3, "streams": 3, "chmaps": 3}
        streams = [PCM_INFO.unpack(entry) for entry in driver.info(SoundRequest.PCM_INFO, 3, 32)]
        assert [stream["direction"] for stream in streams] == [0, 0, 1]
        assert [stream["hda_fn_nid"] for stream in streams] == [0, 1, 0]
        assert streams[1]["formats"] == 1 << 4 | 1 << 19
        assert (streams[0]["rates"], streams[1]["rates"]) == (1 << 12, 1 << 7)
        assert (streams[1]["channels_min"], streams[1]["channels_max"]) == (1, 6)
        maps = [CHMAP_INFO.unpack(entry) for entry in driver.info(SoundRequest.CHMAP_INFO, 3, 24)]
        assert maps[0]["positions"][:3] == bytes([3, 4, 0])
        assert maps[1]["positions"][:7] == bytes([3, 4, 5, 6, 7, 8, 0])
        jacks = [JACK_INFO.unpack(entry) for entry in driver.info(SoundRequest.JACK_INFO, 3, 24)]
        assert [jack["connected"] for jack in jacks] == [1, 1, 1]
        # A driver of another version has entries of another size.
        (longer,) = driver.info(SoundRequest.PCM_INFO, 1, 40, start=2)
        assert longer == driver.info(SoundRequest.PCM_INFO, 1, 32, start=2)[0] + bytes(8)
        assert driver.info(SoundRequest.PCM_INFO, 1, 16)[0] == longer[:8] + bytes.fromhex(
            "2000000000000000"
        )


def test_c49_what_makes_no_sense_is_answered_so(pair: Served) -> None:
    with driven(pair) as guest:
        driver = Driver(guest)

        def query(**fields: int) -> SoundStatus:
            return driver.ask(QUERY_INFO.pack(**fields), 4 + 3 * 32)[0]

        pcm_info = SoundRequest.PCM_INFO
        assert query(code=pcm_info, count=4, size=32) == BAD
        assert query(code=pcm_info, start_id=3, count=1, size=32) == BAD
        assert query(code=pcm_info, start_id=0xFFFFFFFF, count=0xFFFFFFFF, size=32) == BAD
        assert query(code=pcm_info, count=3, size=33) == BAD  # more than there is room for
        assert query(code=pcm_info, count=1, size=0xFFFFFFFF) == BAD
        assert query(code=pcm_info, count=0, size=1 << 20) == BAD
        assert query(code=SoundRequest.JACK_REMAP) == SoundStatus.NOT_SUPP
        assert query(code=0x300) == SoundStatus.NOT_SUPP
        for size in (0, 1, 3, 4, 15):
            assert driver.ask(QUERY_INFO.pack(code=pcm_info)[:size])[0] == BAD
        for size in (4, 7):
            assert driver.ask(PCM_HEADER.pack(code=SoundRequest.PCM_START)[:size])[0] == BAD
        assert driver.ask(PCM_SET_PARAMS.pack(code=SoundRequest.PCM_SET_PARAMS)[:23])[0] == BAD
        # No room for an answer, or for less than one.
        assert guest.do(CONTROL, [QUERY_INFO.pack(code=pcm_info)], [3]).written == 0
        assert guest.do(CONTROL, [QUERY_INFO.pack(code=pcm_info)]).written == 0
        assert [driver.command(name, 3) for name in ("PREPARE", "START")] == [BAD, BAD]
        unsupported = SoundStatus.NOT_SUPP
        assert driver.choose(3) == BAD
        assert driver.choose(0, 48000) == unsupported
        assert driver.choose(0, format=SampleFormat.S32) == unsupported
        assert [driver.choose(0, channels=number) for number in (0, 3, 255)] == [unsupported] * 3
        assert driver.choose(0, features=1) == unsupported
        for bad in ((0, 0), (PERIOD, 0), (0, PERIOD), (PERIOD + 1, PERIOD), (6, 3)):
            assert driver.choose(0, buffer_bytes=bad[0], period_bytes=bad[1]) == BAD
        assert driver.choose(0) == GOOD


def test_c49_transfers_that_make_no_sense_come_back_with_a_status(pair: Served) -> None:
    with driven(pair) as guest:
        driver = Driver(guest)
        assert driver.sent(driver.send(bytes(PERIOD))) == BAD  # nothing is prepared
        driver.start(0)
        driver.start(2)
        assert driver.sent(driver.send(bytes(PERIOD), 3)) == BAD
        assert driver.sent(driver.send(bytes(PERIOD), 2)) == BAD  # one to record from
        assert driver.sent(driver.send(bytes(3))) == BAD  # no whole frames
        assert driver.sent(driver.send(bytes(MOST_BYTES + 4))) == BAD
        assert driver.sent(driver.send(b"")) == GOOD
        for out in (b"", b"\0\0\0"):
            content = guest.do(TRANSMIT, [out], [8]).content
            assert TRANSFER_STATUS.unpack(content)["status"] == BAD
        head = TRANSFER.pack(stream_id=0)
        assert guest.do(TRANSMIT, [head, bytes(4)]).written == 0
        assert guest.do(TRANSMIT, [head, bytes(4)], [7]).written == 0
        other = TRANSFER.pack(stream_id=2)
        assert guest.do(RECEIVE, [other], [7]).written == 0
        assert guest.do(RECEIVE, [head], [PERIOD, 8]).written == 8  # one to play to
        assert guest.do(RECEIVE, [other], [MOST_BYTES + 4, 8]).written == 8
        assert driver.got(driver.want(PERIOD, 2)) == bytes(PERIOD)
        assert driver.sent(driver.send(bytes(PERIOD))) == GOOD
    assert not [line for line in pair.lines if "ERROR" in line]


def test_commands_have_their_order(pair: Served) -> None:
    with driven(pair) as guest:
        driver = Driver(guest)

        def says(*names: str) -> list[SoundStatus]:
            return [driver.command(name, 1) for name in names]

        names = ("PREPARE", "START", "STOP", "RELEASE")
        assert says(*names) == [BAD] * 4
        assert driver.choose(1, 48000, SampleFormat.U8) == GOOD
        assert says("START", "STOP", "RELEASE") == [BAD] * 3
        assert says("PREPARE", "PREPARE", "STOP", "START", "START") == [GOOD, GOOD, BAD, GOOD, BAD]
        assert says("PREPARE", "RELEASE", "STOP", "STOP") == [BAD, BAD, GOOD, BAD]
        assert says("START", "STOP", "RELEASE", "RELEASE") == [GOOD, GOOD, GOOD, BAD]
        # As Linux has it: prepared anew after a stop; parameters are chosen whenever it likes.
        assert says("START", "PREPARE", "START", "STOP", "PREPARE") == [BAD, *[GOOD] * 4]
        assert says("START") == [GOOD]
        assert driver.choose(1, 48000, SampleFormat.FLOAT, 6) == GOOD
        assert says("START", "STOP") == [BAD, BAD]
        guest.reset()
        assert says(*names) == [BAD] * 4


# Time.


def test_transfers_take_the_time_that_the_sound_does(pair: Served) -> None:
    with driven(pair) as guest:
        driver = Driver(guest)
        assert driver.choose(0) == driver.command("PREPARE") == GOOD
        size = FAST * 4 // 20
        tokens = [driver.send(bytes(size)) for _ in range(4)]
        driver.start(2)
        began = time.monotonic()
        assert driver.command("START") == GOOD
        for number, token in enumerate(tokens):
            assert driver.sent(token) == GOOD
            assert time.monotonic() - began >= (number + 1) * 0.05
        # One that comes late begins when it comes: the stream has waited.
        began = time.monotonic()
        assert driver.got(driver.want(size, 2)) == bytes(size)
        assert time.monotonic() - began >= 0.05


def test_transfers_that_are_late_do_not_come_all_at_once(pair: Served) -> None:
    """Linux's driver would not go on: it had seen as much of its buffer played as before."""
    with driven(pair) as guest:
        driver = Driver(guest)
        driver.start(0)
        first, *tokens = [driver.send(bytes(FAST * 4 // 20)) for _ in range(9)]
        assert driver.sent(first) == GOOD  # so that the worker has all of them
        worker = pair.wait_worker()
        os.kill(worker, signal.SIGSTOP)
        try:
            time.sleep(8 * 0.05)  # what they take, so that all are late
            began = time.monotonic()
        finally:
            os.kill(worker, signal.SIGCONT)
        for number, token in enumerate(tokens):
            assert driver.sent(token) == GOOD
            assert time.monotonic() - began >= (number - 1) * 0.05
        assert driver.command("STOP") == driver.command("RELEASE") == GOOD


def test_what_waits_is_kept_by_a_stop_and_given_back_by_a_release(pair: Served) -> None:
    with driven(pair) as guest:
        driver = Driver(guest)
        driver.start(1, rate=48000, format=SampleFormat.U8, channels=1)
        tokens = [driver.send(bytes(MOST_BYTES), 1) for _ in range(3)]  # 22 seconds each
        assert driver.command("STOP", 1) == GOOD
        guest.queues[TRANSMIT].reap()
        assert guest.queues[TRANSMIT].in_flight == 3
        assert driver.command("START", 1) == GOOD
        assert driver.command("STOP", 1) == driver.command("RELEASE", 1) == GOOD
        guest.queues[TRANSMIT].reap()
        assert guest.queues[TRANSMIT].in_flight == 0
        assert [driver.sent(token) for token in tokens] == [GOOD] * 3
        # Recorded, there is nothing in them.
        driver.start(2)
        want = driver.want(MOST_BYTES, 2)
        assert driver.command("STOP", 2) == driver.command("RELEASE", 2) == GOOD
        assert driver.got(want) == b""


# Files.


SAID = pcm(10_000)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """Streams to play to, of which the second is all but full, and to record from, of which the
    second is not repeated; and where their files are.
    """
    where = tmp_path_factory.mktemp("files")
    length = sound_wav.MOST_BYTES // 4 * 4 - PERIOD
    full = where / "full.wav"
    full.write_bytes(sound_wav.header(Params(SampleFormat.S16, FAST, 2), length))
    os.truncate(full, sound_wav.HEADER_BYTES + length)
    names = ("played.wav", "full.wav")
    playback = [fast(backend="wav", path=str(where / name)) for name in names]
    said = {"backend": "wav", "path": str(made(where / "said.wav", SAID))}
    with sound(playback, [said, {**said, "repeat": False}]) as served:
        yield served, where


@pytest.mark.parametrize("packed", [False, True])
def test_a_recording_has_each_frame_once_while_workers_are_killed(
    files: tuple[Served, Path], packed: bool
) -> None:
    served, where = files
    path = where / "played.wav"
    wanted = recorded(path)
    with driven(served, packed=packed) as guest:
        driver = Driver(guest)
        driver.start(0)
        for turn in range(3):
            pieces = [pcm(PERIOD, 30 * turn + number) for number in range(30)]
            tokens = [driver.send(piece) for piece in pieces]
            assert driver.sent(tokens[3 * turn]) == GOOD
            killed = served.kill_worker()
            there = recorded(path)  # whole frames, whenever one looks
            wanted += b"".join(pieces)
            assert wanted.startswith(there)
            for token in tokens[3 * turn + 1 :]:
                assert driver.sent(token) == GOOD
            served.wait_worker(other_than=killed)
            assert recorded(path) == wanted
        assert driver.command("STOP") == driver.command("RELEASE") == GOOD


def test_the_guest_goes_on_when_the_master_dies(tmp_path: Path) -> None:
    path = tmp_path / "played.wav"
    streams = [fast(backend="wav", path=str(path))]
    with sound(streams, arguments=["--supervised"]) as served, driven(served) as guest:
        driver = Driver(guest)
        driver.start(0)
        assert driver.sent(driver.send(pcm(PERIOD, 1))) == GOOD
        before = served.status().pid
        os.kill(before, signal.SIGKILL)
        assert driver.sent(driver.send(pcm(PERIOD, 2))) == GOOD
        assert served.status().pid != before
    assert recorded(path) == pcm(PERIOD, 1) + pcm(PERIOD, 2)


def test_the_next_device_goes_on_behind_what_is_recorded(tmp_path: Path) -> None:
    path, other = tmp_path / "played.wav", tmp_path / "other.wav"
    stream = PlaybackOptions(backend="wav", path=str(path), formats=("u8",), channels=1)
    params = Params(SampleFormat.U8, 48000, 1)

    def opened(device: Sound) -> tuple[int, Fd]:
        device.shared = device.shared_files()
        state, file = device.shared.values()
        return int.from_bytes(os.pread(state.fileno(), 8, 8), "little"), file

    def close(device: Sound) -> None:
        for file in device.shared.values():
            file.close()

    first, second = (Sound(SoundOptions(playback=(stream,))) for _ in range(2))
    position, file = opened(first)
    assert (position, recorded(path)) == (0, b"")
    # An odd number of bytes has one more in the file, which is none of the sound.
    assert sound_wav.record(file, params, 0, b"\1\2\3") == 3
    content = path.read_bytes()
    assert len(content) == 48 == 8 + int.from_bytes(content[4:8], "little")
    close(first)
    position, file = opened(second)
    assert (position, recorded(path)) == (3, b"\1\2\3")
    assert sound_wav.record(file, params, position, b"\4\5\6") == 6
    assert (path.stat().st_size, recorded(path)) == (50, bytes(range(1, 7)))
    path.rename(other)
    assert list(second.replaced_files()) == [("playback", f"{path} is gone")]
    path.write_bytes(b"")
    assert list(second.replaced_files()) == [("playback", f"another file is at {path} now")]
    close(second)
    # One that has become shorter says so at once.
    other.replace(path)
    os.truncate(path, 48)
    third = Sound(SoundOptions(playback=(stream,)))
    assert (opened(third)[0], recorded(path)) == (4, b"\1\2\3\4")
    close(third)
    other.symlink_to(path)
    twice = PlaybackOptions(backend="wav", path=str(other), formats=("u8",), channels=1)
    with pytest.raises(FileRefused, match="another stream's"):
        Sound(SoundOptions(playback=(stream, twice))).shared_files()


def test_a_queue_stops_at_once_and_goes_on_with_what_waits_in_its_order(
    files: tuple[Served, Path],
) -> None:
    served, where = files
    before = recorded(where / "played.wav")
    with driven(served) as guest:
        driver = Driver(guest)
        began = time.monotonic()
        driver.start(0)
        pieces = [pcm(FAST // 2, number) for number in range(4)]  # an eighth of a second each
        tokens = [driver.send(piece) for piece in pieces]
        pid = served.status().queues[TRANSMIT].pid
        guest.stop_queue(TRANSMIT)
        # Whoever holds them for longer than 3 s is replaced.
        assert served.status().queues[TRANSMIT].pid == pid
        queue = guest.queues[TRANSMIT]
        guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=TRANSMIT)
        guest.kick_queue(queue)
        guest.add_memory(RamRegion(1 << 30, 1 << 20))  # which has the queue pause
        assert [driver.sent(token) for token in tokens] == [GOOD] * 4
        assert time.monotonic() - began >= 0.5
    assert recorded(where / "played.wav") == before + b"".join(pieces)


def test_a_file_that_is_full_is_a_status_and_the_guest_goes_on(
    files: tuple[Served, Path],
) -> None:
    served, where = files
    with driven(served) as guest:
        driver = Driver(guest)
        driver.start(1)
        wanted = [GOOD, SoundStatus.IO_ERR, SoundStatus.IO_ERR]
        assert [driver.sent(driver.send(pcm(PERIOD), 1)) for _ in wanted] == wanted
        served.wait_for_line("stream 1: OSError: File too large")
        assert sum("File too large" in line for line in served.lines) == 1
    with open(where / "full.wav", "rb") as file:
        file.seek(-PERIOD, os.SEEK_END)
        assert file.read() == pcm(PERIOD)


def test_nothing_is_lost_or_done_twice_when_workers_die_at_the_worst_moments(
    tmp_path: Path,
) -> None:
    path, marks = tmp_path / "played.wav", tmp_path / "marks"
    marks.mkdir()
    streams = [fast(backend="wav", path=str(path))]
    with serve(Dying, playback=streams, marks=str(marks)) as served, driven(served) as guest:
        driver = Driver(guest)
        assert driver.choose() == GOOD
        # Both wait for the next worker when the first one dies of PREPARE.
        codes = SoundRequest.PCM_PREPARE, SoundRequest.PCM_START
        asked = [guest.submit(CONTROL, [PCM_HEADER.pack(code=code)], [4]) for code in codes]
        assert [HEADER.unpack(guest.wait(each).content)["code"] for each in asked] == [GOOD] * 2
        # It is no reason to be told the same twice.
        assert driver.command("START") == BAD
        pieces = [pcm(PERIOD, 1)]
        for when in (b"before", b"after"):
            pieces += [when.ljust(PERIOD), pcm(PERIOD, len(pieces))]
        assert [driver.sent(driver.send(piece)) for piece in pieces] == [GOOD] * 5
        died = {each.name for each in marks.iterdir()}
        assert died == {"PCM_PREPARE", "PCM_START", "START, shown", "before", "after"}
    assert recorded(path) == b"".join(pieces)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_recorded_in_a_circle_whoever_dies(
    files: tuple[Served, Path], packed: bool
) -> None:
    served, _ = files
    with driven(served, packed=packed) as guest:
        driver = Driver(guest)
        driver.start(2)
        tokens = [driver.want(PERIOD, 2) for _ in range(30)]
        came = [driver.got(token) for token in tokens[:10]]
        served.kill_worker()
        came += [driver.got(token) for token in tokens[10:]]
        # It begins where another test has left it.
        assert b"".join(came) in SAID * 7


def test_a_file_that_is_not_repeated_ends_in_silence(files: tuple[Served, Path]) -> None:
    with driven(files[0]) as guest:
        driver = Driver(guest)
        (info,) = driver.info(SoundRequest.PCM_INFO, 1, 32, start=3)
        assert PCM_INFO.unpack(info)["rates"] == 1 << RATES.index(FAST)
        driver.start(3)
        came = [driver.got(driver.want(PERIOD, 3)) for _ in range(6)]
        assert b"".join(came) == SAID + bytes(6 * PERIOD - len(SAID))


def whole(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


@pytest.mark.parametrize(
    ("format", "loud", "value"),
    [
        (SampleFormat.U8, 127, lambda data: data[0] - 128),
        (SampleFormat.S16, 0x7FFF, whole),
        (SampleFormat.S24_3, 0x7FFFFF, whole),
        (SampleFormat.S32, 0x7FFFFFFF, whole),
        (SampleFormat.FLOAT, 1, lambda data: struct.unpack("<f", data)[0]),
    ],
)
def test_a_tone_is_a_sine_in_every_format(
    format: SampleFormat, loud: float, value: Callable[[bytes], float]
) -> None:
    tone, size = Tone(1000), SAMPLE_BYTES[format]
    tone.open(Params(format, 8000, 2))
    first, position = tone.record(0, 40 * size)
    came = first + tone.record(position, 40 * size)[0]
    second = tone.record(0, 16000 * size)[0]
    assert tone.record(0, 56000 * size) == ((second * 4)[: 56000 * size], 8000 * size)
    samples = [came[at : at + size] for at in range(0, len(came), size)]
    assert samples[::2] == samples[1::2]
    for number, sample in enumerate(samples[::2]):
        assert abs(value(sample) / loud - math.sin(2 * math.pi * number / 8) / 4) < 0.01


def test_a_card_that_could_not_be_opened_again_is_a_status() -> None:
    for card in (Card(None, plays=True), Card(None, plays=False)):
        assert card.wait(PERIOD) is None  # the stream goes on in its own time
    with pytest.raises(OSError, match="not open"):
        Card(None, plays=True).play(0, bytes(PERIOD))
    with pytest.raises(OSError, match="not open"):
        Card(None, plays=False).record(0, PERIOD)


# In Python.


def test_a_subclass_hears_and_says_what_it_likes() -> None:
    with serve(Hearing, playback=[fast()], capture=[fast()]) as served, driven(served) as guest:
        driver = Driver(guest)
        driver.start(0)
        driver.start(1)
        assert driver.sent(driver.send(b"\1\2\3\4" * 10)) == GOOD
        served.wait_for_line(f"rate={FAST}, channels=2), up to 4")
        assert driver.got(driver.want(40, 1)) == b"\7" * 20 + bytes(20)
        assert driver.sent(driver.send(b"raise   ")) == SoundStatus.IO_ERR
        served.wait_for_line("stream 0: ValueError: not to be heard")
        assert driver.sent(driver.send(b"\5" * 8)) == GOOD
        served.wait_for_line("up to 5")


def test_the_hosts_card_plays_and_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("SOUND_CARD_OUT", str(out))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "soundcards"))
    monkeypatch.syspath_prepend(Path(__file__).parent / "soundcards")
    card = {"backend": "card"}
    # The library that stands for PortAudio writes a file, and lies where no package does.
    file = {"sandbox": {"files": [str(tmp_path)], "readable": [str(Path(__file__).parent)]}}
    both = [card, {**card, "card": "none"}]
    with sound(both, [card], file=file) as served, driven(served) as guest:
        driver = Driver(guest)
        driver.start(0, rate=48000)
        driver.start(2, rate=48000)
        data = b"\1" * 9600
        began = time.monotonic()
        assert [driver.sent(driver.send(data)) for _ in range(6)] == [GOOD] * 6
        # Two of them, a tenth of a second, are ahead of their time.
        assert time.monotonic() - began >= 0.1
        until(lambda: out.read_bytes().count(1) == 6 * len(data))
        assert driver.got(driver.want(1920, 2)) == b"\5" * 1920
        assert driver.choose(1, 48000) == GOOD
        assert driver.command("PREPARE", 1) == SoundStatus.IO_ERR
        served.wait_for_line("stream 1: PortAudioError: no such card")
        for stream in (0, 2):
            assert driver.command("STOP", stream) == driver.command("RELEASE", stream) == GOOD


@pytest.mark.parametrize(
    ("playback", "capture", "reason"),
    [
        ([{}] * 9, [], "length <= 8"),
        ([{"formats": []}], [], "length >= 1"),
        ([{"channels": 19}], [], "<= 18"),
        ([{"rates": [12345]}], [], "playback: no rate of virtio: 12345"),
        ([{"backend": "wav"}], [], "playback: wav needs a path"),
        ([{"path": "x"}], [], "playback: null has no path"),
        ([{"card": "x"}], [], "playback: null has no card"),
        ([{"backend": "card"}], [], "playback: card needs sounddevice, .*'vuproc.sound.'"),
        ([{"backend": "wav", "path": "/tmp"}], [], "playback: .*Is a directory"),
        ([{"backend": "wav", "path": "/dev/null"}], [], "playback: .*not a regular file"),
        ([{"backend": "wav", "path": "x", "rates": [8000, 48000]}], [], "one format and one rate"),
        ([{"backend": "wav", "path": "x"}] * 2, [], "playback: x is another stream's"),
        ([{"backend": "wav", "path": __file__}], [], "playback: .*something else in it"),
        ([], [{"backend": "wav", "path": __file__}], "capture: .*no WAV file"),
        ([], [{"backend": "wav", "path": "/nowhere"}], "capture: .*No such file"),
        ([], [{"backend": "tone", "rates": [8000], "frequency": 5000}], "capture: .*10000"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    playback: list[dict[str, Any]], capture: list[dict[str, Any]], reason: str
) -> None:
    given = {"playback": playback, "capture": capture}
    try:
        options = msgspec.convert(given, SoundOptions)
    except msgspec.ValidationError as error:
        said = str(error)
    else:
        said = "; ".join(f"{option}: {why}" for option, why in options.problems())
        if not said:
            with pytest.raises(FileRefused) as refused:
                Sound(options).shared_files()
            said = f"{refused.value.option}: {refused.value.reason}"
    assert re.search(reason, said), said


def test_without_options_there_is_a_stream_to_play_to() -> None:
    assert SoundOptions().all_streams() == [("playback", PlaybackOptions())]
    assert CONFIG.unpack(Sound().config_space())["streams"] == 1


def test_files_of_many_kinds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.wav"

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def read(*chunks: bytes) -> sound_wav.Sound:
        path.write_bytes(b"RIFF" + bytes(4) + b"WAVE" + b"".join(chunks))
        with sound_wav.played_file(str(path), "capture") as file:
            return sound_wav.sound_in(file)

    plain = struct.pack("<HHIIHH", 3, 1, 48000, 192000, 4, 32)
    extensible = struct.pack("<HHIIHH", 0xFFFE, 6, 48000, 864000, 18, 24)
    extensible += struct.pack("<HHIH14x", 22, 24, 0x3F, 1)
    data = chunk(b"data", bytes(90))
    names = chunk(b"LIST", b"odd")
    assert read(chunk(b"fmt ", plain), names, data) == (
        Params(SampleFormat.FLOAT, 48000, 1),
        56,
        88,
    )
    params = Params(SampleFormat.S24_3, 48000, 6)
    assert read(names, chunk(b"fmt ", extensible), data) == (params, 80, 90)
    # Whoever wrote it did not come to say how long it is.
    assert read(chunk(b"fmt ", extensible), data.replace(b"\x5a\0\0\0", b"\xff" * 4)).length == 90
    for bad in (
        [],
        [data],
        [chunk(b"fmt ", plain)],
        [chunk(b"fmt ", plain[:15]), data],
        [chunk(b"fmt ", b"\xff" * 16), data],
        [chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, 12345, 49380, 4, 16)), data],
        [chunk(b"fmt ", struct.pack("<HHIIHH", 1, 19, 8000, 304000, 38, 16)), data],
        [chunk(b"fmt ", struct.pack("<HHIIHH", 1, 0, 8000, 0, 0, 16)), data],
        [chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, 8000, 32000, 5, 16)), data],
        [chunk(b"fmt ", plain), chunk(b"data", b"abc")],
        [*[names] * sound_wav.MOST_CHUNKS, chunk(b"fmt ", plain), data],
        [b"junk\xff\xff\xff\xff", chunk(b"fmt ", plain), data],
    ):
        with pytest.raises(FileRefused):
            read(*bad)
