"""The public testing package on devices of a test's own, as a device author uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.testing import authors_devices
from tests.testing.authors_devices import Echo, Entropy, Never
from vuproc import Device, Request
from vuproc.testing import (
    Bell,
    BellKind,
    Job,
    Kind,
    LoadStalled,
    NoCompletion,
    NoReply,
    Refused,
    serve,
)
from vuproc.testing.errors import ServeFailed
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import reference


def test_entropy_in_twenty_lines(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Entropy).guest() as guest:
        first = guest.do(in_=[64])
        assert first.written == 64
        assert first.content != guest.do(in_=[64]).content
        assert guest.do(in_=[1, 2, 3]).written == 6


def test_echo_on_every_queue(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Echo, queues=3).guest(queues=3) as guest:
        for queue in range(3):
            answer = guest.do(queue, [b"hello ", b"world"], [4, 100], indirect=queue == 1)
            assert answer.content == b"hello world"
            assert answer.data[0] == b"hell"


def test_several_requests_wait_in_any_order(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Echo).guest() as guest:
        tokens = [guest.submit(out=[bytes([number])], in_=[1]) for number in range(20)]
        for number in reversed(range(20)):
            assert guest.wait(tokens[number]).content == bytes([number])


def test_exception_in_the_device_fails_the_request_and_is_logged(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Echo)
    with served.guest() as guest:
        assert guest.do(out=[b"raise"], in_=[10]).written == 0
        assert guest.do(out=[b"next"], in_=[10]).content == b"next"
    assert "on demand" in served.wait_for_line("Echo.handle")


def test_request_that_is_never_finished(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Never).guest() as guest:
        token = guest.submit(out=[b"?"])
        with pytest.raises(NoCompletion) as caught:
            guest.wait(token, timeout_s=0.2)
        assert caught.value.queue == 0
        job = Job(count=10, depth=4, kind=Kind.PLAIN, stall_s=0.2)
        with pytest.raises(LoadStalled) as stalled:
            guest.load(0, job)
        assert (stalled.value.completed, stalled.value.in_flight) == (0, 4)


def test_plain_load_counts_what_went_through(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Echo).guest() as guest:
        for job in (
            Job(count=1000, depth=8, kind=Kind.PLAIN, out_size=100, in_size=100),
            Job(count=1000, depth=8, kind=Kind.PLAIN, out_size=0, in_size=1, indirect=False),
            Job(count=1000, depth=1, kind=Kind.PLAIN, out_size=8, in_size=0, poll=True),
        ):
            stats = guest.load(0, job)
            assert stats.completed == sum(stats.latency) == 1000
            assert stats.bytes_written == 1000 * job.out_size
            assert stats.bytes_read == 1000 * job.in_size
            assert 0 < stats.percentile_ns(50) <= stats.percentile_ns(99)
            assert stats.rate > 0


def test_load_can_be_stopped_from_another_thread(vuproc_device: ServeDevice) -> None:
    import threading

    with vuproc_device(Echo).guest() as guest:
        queue = guest.queues[0]
        generator, arena = queue.loader(Job(count=1 << 40, kind=Kind.PLAIN))
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(generator.run().completed))
        thread.start()
        while generator.completed < 100 and thread.is_alive():
            guest.front_end.request("GET_FEATURES")
        generator.stop()
        thread.join(30.0)
        assert done and done[0] >= 100
        arena.free()
        assert guest.do(out=[b"on"], in_=[2]).content == b"on"


def test_depth_that_does_not_fit_is_refused(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Echo).guest(queue_size=16) as guest:
        with pytest.raises(ValueError, match="depth 17"):
            guest.load(0, Job(count=1, depth=17, kind=Kind.PLAIN))
        assert guest.load(0, Job(count=16, depth=16, kind=Kind.PLAIN)).completed == 16


@pytest.mark.parametrize(
    "wrong",
    [{"depth": 0}, {"block_size": 100}, {"span": 100}, {"read_percent": 101}, {"start": 1}],
)
def test_job_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Job(**{"count": 1, "span": 1 << 20, **wrong})  # type: ignore[arg-type]


def test_guest_goes_through_a_pipe_and_a_socket(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo)
    for kind in BellKind:
        with served.guest(call=kind) as guest:
            assert guest.do(out=[b"x"], in_=[1]).content == b"x"


def test_refusal_names_its_message(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Echo).guest() as guest:
        with pytest.raises(Refused, match="SET_VRING_NUM was refused with code 1"):
            guest.front_end.request("SET_VRING_NUM", index=9, num=8)


def test_back_end_that_does_not_answer(vuproc_device: ServeDevice) -> None:
    """A second connection waits for the first one's end."""
    served = vuproc_device(Echo)
    with served.guest(), served.connect() as second:
        second.timeout_s = 0.2
        with pytest.raises(NoReply, match="GET_FEATURES"):
            second.request("GET_FEATURES")


def test_device_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "device.yaml").write_text(
        f"socket: ./here.sock\ndevice:\n  type: {authors_devices.__file__}:Echo\n  queues: 2\n"
    )
    with serve(tmp_path / "device.yaml") as served:
        assert served.socket == tmp_path / "here.sock"
        with served.guest(queues=2) as guest:
            assert guest.do(1, [b"file"], [4]).content == b"file"
    assert not served.socket.exists()


def test_log_and_exit_code_of_a_served_device(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Echo, file={"exit_on_disconnect": True})
    served.guest().close()
    assert served.wait() == 0
    assert served.wait_for_line("front-end disconnected")
    assert served.stop() == 0


def test_device_file_with_a_mistake_says_what_and_where() -> None:
    with pytest.raises(ServeFailed, match="exit code 2") as caught:
        with serve(Echo, quues=2):
            pytest.fail("it was served")
    assert any("quues" in line for line in caught.value.lines)


def test_device_that_is_no_class_of_a_module() -> None:
    class Local(Device):
        device_id = 42

    with pytest.raises(ValueError, match="top level"):
        reference(Local)


def test_reference_to_a_class_is_found_again() -> None:
    from vuproc.devices.blk import Blk

    assert reference(Blk) == "vuproc.devices.blk:Blk"
    assert reference(Entropy).endswith("authors_devices:Entropy") or reference(Entropy).endswith(
        "authors_devices.py:Entropy"
    )


def test_options_do_not_go_with_a_path(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(json.dumps({"socket": "s", "device": {"type": "blk"}}))
    with pytest.raises(ValueError, match="device file"):
        with serve(path, queues=2):
            pytest.fail("it was served")


def test_bell_counts_and_is_taken() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert bell.count() == 2
    assert bell.wait(0)
    assert bell.count() == 0
    assert not bell.wait(0.01)
    bell.close()


def test_a_device_object_of_a_function_is_served() -> None:
    class Local(Device):
        device_id = 42

        def __init__(self, answer: bytes) -> None:
            super().__init__()
            self.answer = answer

        def handle(self, request: Request) -> None:
            request.finish(request.write(self.answer))

    with serve(Local(b"object"), file={"stall_timeout": 5}) as served, served.guest() as guest:
        assert guest.do(0, [], [16]).content == b"object"


def test_a_device_object_that_is_refused_says_why() -> None:
    class Handles(Device):
        device_id = 42

    with pytest.raises(ServeFailed, match="Handles has no method handle"):
        with serve(Handles()):
            pytest.fail("it was served")
