"""The CAN controller with the built-in driver, on buses that are none."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices.nodes import ANSWER, ASK, DIE, DIE_OFF, FAULT, FD, MANY, NEVER, OFF, Nodes
from vuproc.device_file.check import load
from vuproc.devices.can import BACKLOG, CONTROL, RECEIVE, TRANSMIT
from vuproc.devices.can_frame import Frame
from vuproc.devices.can_options import CanOptions
from vuproc.errors import ConfigErrors
from vuproc.spec.can import (
    CONFIG,
    CONTROL_OUT,
    RX,
    S_CTRL_BUSOFF,
    TX_OUT,
    CanFeature,
    CanFlag,
    CanMessage,
    CanResult,
)
from vuproc.testing import Guest, NoCompletion, Served, serve
from vuproc.testing.serve import reference

pytestmark = pytest.mark.timeout(90)

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
BUFFER = 80
"""Bytes of a receive buffer of Linux's driver."""
START, STOP = CanMessage.SET_CTRL_MODE_START, CanMessage.SET_CTRL_MODE_STOP
OK, NOT_OK = CanResult.OK, CanResult.NOT_OK


@pytest.fixture(scope="module")
def looped() -> Iterator[Served]:
    with serve({"type": "can", "queue_size": 512}) as served:
        yield served


def control(guest: Guest, message: CanMessage = START) -> CanResult:
    done = guest.do(CONTROL, [CONTROL_OUT.pack(msg_type=message)], [1])
    assert done.written == 1
    return CanResult(done.content[0])


def wire(can_id: int, data: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    """A frame as Linux's driver sends it: 16 bytes, and the data."""
    size = len(data) if length is None else length
    return TX_OUT.pack(msg_type=CanMessage.TX, length=size, flags=flags, can_id=can_id) + data


def send(guest: Guest, can_id: int, data: bytes = b"", flags: int = 0) -> CanResult:
    done = guest.do(TRANSMIT, [wire(can_id, data, flags)], [1])
    assert done.written == 1
    return CanResult(done.content[0])


def receive(guest: Guest) -> tuple[int, bytes, int]:
    """Identifier, data and flags of the next frame."""
    content = guest.receive(RECEIVE)
    head = RX.unpack(content)
    assert head["msg_type"] == CanMessage.RX
    assert len(content) == RX.size + head["length"]
    return head["can_id"], content[RX.size :], head["flags"]


def dropped(served: Served) -> int:
    return served.status().queues[RECEIVE].counters["dropped"]


@LAYOUTS
def test_frames_of_each_kind_come_back(looped: Served, packed: bool) -> None:
    with looped.guest(queues=3, queue_size=512, packed=packed) as guest:
        guest.keep_filled(RECEIVE, count=256, size=BUFFER)
        assert control(guest) is OK
        for frame in (
            (0x123, b"\1\2\3", 0),
            (0x7FF, bytes(8), 0),
            (0x1FFFFFFF, b"extended", CanFlag.EXTENDED),
            (5, bytes(range(64)), CanFlag.FD),
            (6, b"", CanFlag.FD | CanFlag.EXTENDED),
            # A remote frame has a length, and Linux sends as many zeros.
            (7, bytes(4), CanFlag.RTR),
        ):
            assert send(guest, *frame) is OK
            assert receive(guest) == frame
        assert guest.do(TRANSMIT, [wire(8, flags=CanFlag.RTR, length=3)], [1]).content == b"\0"
        assert receive(guest) == (8, bytes(3), CanFlag.RTR)


def test_a_stopped_controller_sends_nothing(looped: Served) -> None:
    with looped.guest(queues=3) as guest:
        guest.keep_filled(RECEIVE, count=8, size=BUFFER)
        assert send(guest, 1) is NOT_OK
        for _ in range(2):
            assert control(guest) is OK
        assert send(guest, 2) is OK
        assert control(guest, STOP) is OK
        assert send(guest, 3) is NOT_OK
        assert control(guest) is OK
        guest.reset()
        assert send(guest, 4) is NOT_OK
        assert control(guest) is OK
    # A driver that comes after another finds it as at first.
    with looped.guest(queues=3) as guest:
        assert send(guest, 5) is NOT_OK


def test_a_machine_that_is_paused_or_moved_is_on_the_bus_still(looped: Served) -> None:
    with looped.guest(queues=3) as guest:
        assert control(guest) is OK
        for queue in range(3):
            guest.stop_queue(queue)
        guest.set_status(0)
        state = guest.front_end.save_state()
        guest.front_end.set_features(guest.front_end.features)
        for queue in range(3):
            guest.start_queue(queue)
        assert send(guest, 1) is OK
    with looped.guest(start=False) as guest:
        guest.setup()
        guest.front_end.load_state(state)
        for queue in range(3):
            guest.start_queue(queue)
        assert send(guest, 1) is OK


def test_c45_what_is_no_frame_is_refused(looped: Served) -> None:
    with looped.guest(queues=3) as guest:
        guest.keep_filled(RECEIVE, count=8, size=BUFFER)
        assert control(guest) is OK
        good = wire(1, b"12345678")
        for bad in (
            b"",
            good[:15],
            good[:-1],
            b"\2" + good[1:],
            wire(0x800),
            wire(1 << 29, flags=CanFlag.EXTENDED),
            wire(0xFFFFFFFF, flags=CanFlag.EXTENDED),
            wire(1, bytes(9)),
            wire(1, bytes(65), flags=CanFlag.FD),
            wire(1, length=0xFFFF, flags=CanFlag.FD),
            wire(1, length=9, flags=CanFlag.RTR),
            wire(1, flags=CanFlag.RTR | CanFlag.FD),
            wire(1, flags=0x1000),
            wire(1, flags=0x10000),
        ):
            assert guest.do(TRANSMIT, [bad], [1]).content == bytes([NOT_OK]), bad
        # Without room for a result nothing is sent; more room than that is left alone.
        assert guest.do(TRANSMIT, [good]).written == 0
        assert guest.do(TRANSMIT, [good + bytes(100_000)], [1000]).written == 1
        assert receive(guest) == (1, b"12345678", 0)
        for out, written in (([b"\1"], 1), ([b"\3\2"], 1), ([], 1)):
            done = guest.do(CONTROL, out, [1])
            assert (done.content, done.written) == (bytes([NOT_OK]), written)
        assert guest.do(CONTROL, [b"\2\2"]).written == 0
        assert send(guest, 9) is OK


def test_kinds_that_were_not_negotiated_pass_in_neither_direction(tmp_path: Path) -> None:
    without = CanFeature.CAN_FD | CanFeature.RTR_FRAMES
    with serve(Nodes, seen=str(tmp_path / "seen")) as served:
        with served.guest(queues=3, without=without) as guest:
            guest.keep_filled(RECEIVE, count=8, size=RX.size + 8)
            assert control(guest) is OK
            assert send(guest, 1, flags=CanFlag.FD) is NOT_OK
            assert send(guest, 1, flags=CanFlag.RTR) is NOT_OK
            assert send(guest, FD) is OK
            assert dropped(served) == 1
            assert send(guest, ASK, b"abc") is OK
            assert receive(guest) == (ANSWER, b"cba", 0)
        with served.guest(queues=3, without=CanFeature.CAN_CLASSIC) as guest:
            assert control(guest) is OK
            assert send(guest, 1) is NOT_OK
            assert send(guest, 2, flags=CanFlag.FD) is OK


def test_frames_wait_for_buffers_up_to_a_bound(tmp_path: Path) -> None:
    with serve(Nodes, seen=str(tmp_path / "seen")) as served, served.guest(queues=3) as guest:
        assert control(guest) is OK
        assert send(guest, MANY, (BACKLOG + 7).to_bytes(4, "little")) is OK
        assert dropped(served) == 7
        # What has no room comes back as it is, and the frame waits for the next.
        assert guest.do(RECEIVE, in_=[RX.size + 3]).written == 0
        guest.keep_filled(RECEIVE, count=100, size=BUFFER)
        for number in range(BACKLOG):
            assert receive(guest) == (ANSWER, number.to_bytes(4, "little"), 0)
        pid = served.status().queues[RECEIVE].pid
        guest.stop_queue(RECEIVE)  # with all buffers posted
        assert served.status().queues[RECEIVE].pid == pid


def test_what_a_node_says_is_heard(tmp_path: Path) -> None:
    with (
        serve(Nodes, seen=str(tmp_path / "seen")) as served,
        served.guest(queues=3, channel=True) as guest,
    ):
        assert control(guest) is OK
        assert send(guest, NEVER) is NOT_OK
        assert send(guest, FAULT) is NOT_OK
        assert CONFIG.unpack(guest.config(CONFIG.size))["status"] == 0
        assert send(guest, OFF) is OK
        assert CONFIG.unpack(guest.wait_config_change())["status"] == S_CTRL_BUSOFF
        assert send(guest, ASK) is NOT_OK
        assert control(guest) is OK
        assert CONFIG.unpack(guest.wait_config_change())["status"] == 0
        assert send(guest, ASK) is OK
        assert served.status().queues[TRANSMIT].restarts == 0


def test_a_frame_inside_which_the_worker_died_is_not_sent_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    with (
        serve(Nodes, seen=str(seen)) as served,
        served.guest(queues=3, channel=True) as guest,
    ):
        guest.keep_filled(RECEIVE, count=8, size=BUFFER)
        assert control(guest) is OK
        assert send(guest, DIE, b"once") is NOT_OK
        # The next worker is started, as its predecessor was.
        assert send(guest, ASK, b"on") is OK
        assert receive(guest) == (ANSWER, b"no", 0)
        assert seen.read_text().splitlines() == [f"{DIE:x} {b'once'.hex()}", f"{ASK:x} 6f6e"]
        assert served.status().queues[TRANSMIT].restarts == 1
        # Nor does it keep to itself that the controller has stopped.
        assert send(guest, DIE_OFF) is NOT_OK
        assert CONFIG.unpack(guest.wait_config_change())["status"] == S_CTRL_BUSOFF


def test_deaths_repeat_no_frame_and_lose_no_buffer(tmp_path: Path) -> None:
    seen, each = tmp_path / "seen", 32
    device = {"type": reference(Nodes), "seen": str(seen)}
    with serve(device, arguments=["--supervised"]) as served:
        with served.guest(queues=3, queue_size=256) as guest:
            guest.keep_filled(RECEIVE, count=64, size=BUFFER)
            assert control(guest) is OK
            for turn in range(5):
                numbers = [bytes((turn, n)) for n in range(each)]
                tokens = guest.queues[TRANSMIT].submit_many(
                    [([wire(ASK, number)], [1]) for number in numbers]
                )
                if turn == 3:
                    os.kill(served.status().pid, signal.SIGKILL)
                else:
                    served.kill_worker(TRANSMIT)
                results = [guest.queues[TRANSMIT].wait(token).content for token in tokens]
                assert set(results) <= {b"\0", b"\1"}
                # What the driver was told is sent was on the bus; of the rest nobody knows.
                on_bus = [bytes.fromhex(line.split()[1]) for line in seen.read_text().splitlines()]
                assert len(on_bus) == len(set(on_bus))
                sent = {
                    number for number, result in zip(numbers, results, strict=True) if not result[0]
                }
                assert sent <= set(on_bus)
                # A death may lose an answer, and repeats none.
                assert send(guest, ASK, b"last!") is OK
                arrived = []
                while (answer := receive(guest)[1]) != b"!tsal":
                    arrived.append(answer[::-1])
                assert arrived == sorted(set(arrived) & set(on_bus))
                seen.write_text("")
            for number in range(128):
                assert send(guest, ASK, bytes((number,))) is OK
                assert receive(guest)[1] == bytes((number,))


FAKE = '''
"""As much of python-can as is needed: a bus of datagrams."""
import socket

class CanError(Exception):
    error_code = None

class Message:
    is_error_frame = False
    def __init__(self, **fields):
        self.__dict__.update(fields)

class Bus:
    def __init__(self, *, interface, channel, fd, ignore_config):
        self.far = channel
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(channel + ".here")
    def fileno(self):
        return self.socket.fileno()
    def send(self, message, timeout):
        self.socket.sendto(bytes([message.arbitration_id]) + message.data, self.far)
    def recv(self, timeout):
        try:
            data = self.socket.recv(100, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        return Message(arbitration_id=data[0], data=data[1:], dlc=len(data) - 1, is_fd=False,
                       is_extended_id=False, is_remote_frame=False)
    def shutdown(self):
        import os
        os.unlink(self.far + ".here")
        self.socket.close()
'''


def test_a_started_controller_is_on_the_bus_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    (tmp_path / "can").mkdir()
    (tmp_path / "can" / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    far = str(tmp_path / "far")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        # The interface is beside the test, and its bus a socket there.
        serve(
            {"type": "can", "interface": "fake", "channel": far},
            file={"sandbox": {"files": [str(tmp_path)]}},
        ) as served,
        served.guest(queues=3, channel=True) as guest,
    ):
        other.bind(far)
        other.settimeout(30)
        assert not guest.front_end.features & CanFeature.LATE_TX_ACK
        guest.keep_filled(RECEIVE, count=8, size=BUFFER)
        assert control(guest) is OK
        assert send(guest, 5, b"out") is OK
        assert other.recv(100) == b"\5out"
        other.sendto(b"\6in", far + ".here")
        assert receive(guest) == (6, b"in", 0)
        assert control(guest, STOP) is OK
        assert not Path(far + ".here").exists()
        # The bus is in other hands, then free.
        Path(far + ".here").touch()
        assert control(guest) is NOT_OK
        served.wait_for_line("the CAN bus cannot be had")
        Path(far + ".here").unlink()
        assert control(guest) is OK
        # A worker that dies leaves it taken, which is the end for its successor.
        served.kill_worker()
        assert CONFIG.unpack(guest.wait_config_change())["status"] == S_CTRL_BUSOFF
        with pytest.raises(NoCompletion):
            guest.receive(RECEIVE, timeout_s=0.01)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"channel": "can0"}, "channel: loopback has none"),
        ({"bitrate": 500_000}, "bitrate: loopback has none"),
        ({"interface": "socketcan"}, r"needs python-can.*pip install 'vuproc\[can\]'"),
        ({"interface": "socketcan", "bitrate": 0}, "bitrate"),
        ({"queues": 3}, "queues"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr("vuproc.devices.can_options.library_is_there", lambda: False)
    file = tmp_path / "can.yaml"
    file.write_text(json.dumps({"socket": "s", "device": {"type": "can", **options}}))
    with pytest.raises(ConfigErrors, match=reason):
        load(file)
    assert list(CanOptions().problems()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"id": -1},
        {"id": 0x800},
        {"id": 1 << 29, "extended": True},
        {"id": 1, "data": bytes(9)},
        {"id": 1, "data": bytes(65), "fd": True},
        {"id": 1, "remote": True, "data": b"1"},
        {"id": 1, "remote": True, "fd": True},
        {"id": 1, "remote": True, "length": 9},
        {"id": 1, "data": b"12", "length": 1},
    ],
)
def test_no_node_can_send_what_is_no_frame(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Frame(**fields)
