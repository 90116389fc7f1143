"""`log_level: debug`: each message of the front-end and each command to a worker is one line."""

from __future__ import annotations

import logging
import os
import re

import pytest

from tests.pool.scripted import Scripted
from vuproc.fd import Fd
from vuproc.spec.vhost_user import FRONT_END, U64, ProtocolFeature
from vuproc.testing.errors import Refused
from vuproc.testing.serve import Served, serve
from vuproc.vhost_user import traffic
from vuproc.vhost_user.effects import SetKick, StopRing
from vuproc.vhost_user.wire import Message
from vuproc.workers import control

BOUND_S = 20.0
MS = r" \(\d+\.\d\d ms\)$"


def find(served: Served, pattern: str) -> str:
    return served.wait_for_line(lambda line: re.search(pattern, line) is not None, BOUND_S)


def test_c2_each_message_and_each_command_is_one_line() -> None:
    with serve(Scripted, file={"log_level": "debug"}) as served:
        with served.guest() as guest:
            queue = guest.queues[0]
            assert guest.do(0, [b"echo hello"], [64]).content == b"hello"
            with pytest.raises(Refused):
                guest.front_end.request("SET_VRING_NUM", index=0, num=3)
            for _ in range(50):
                guest.status()
            guest.stop_queue(0)
        find(served, r"GET_FEATURES fds=\[\] -> value=0x5\w{8}" + MS)
        find(served, r"SET_VRING_NUM index=0 num=128 NEED_REPLY fds=\[\] -> value=0" + MS)
        where = f"index=0 flags=0 desc={queue.desc:#x} used={queue.used:#x} avail={queue.avail:#x}"
        find(served, f"SET_VRING_ADDR {where} log={queue.used_guest_addr:#x} NEED_REPLY")
        find(served, r"SET_VRING_KICK value=0 NEED_REPLY fds=\[\d+ eventfd\] -> value=0" + MS)
        find(
            served,
            r"SET_MEM_TABLE nregions=1 padding=0 items=\[\(guest_addr=.*\)\] .*fds=\[\d+ file\]",
        )
        refused = r"refused: ring size 3 is not a power of two" + MS
        find(served, r"SET_VRING_NUM index=0 num=3 NEED_REPLY fds=\[\] -> value=1, " + refused)
        find(served, r"GET_VRING_BASE index=0 num=0 .*-> index=0 num=1" + MS)
        worker = r"DEBUG: worker \d+ of queue 0: "
        find(
            served,
            worker
            + r"StartRing setup=\(index=0 size=128 .*kick=\[\d+ eventfd\].*fd=\[\d+ file\].*-> 0"
            + MS,
        )
        find(served, worker + r"StopRing index=0 keeps_record=false drains=true -> 1" + MS)
        # All of them, however many there are of a kind.
        assert sum("GET_STATUS" in line for line in served.lines) >= 50


def test_c2_a_command_that_is_never_answered_has_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    commands = traffic.CommandLog()
    commands.posted(1, StopRing(3))
    caplog.set_level(logging.DEBUG, "vuproc")
    commands.posted(2, StopRing(4))
    commands.posted(3, control.Exit())
    commands.answered("worker 5", 3, 0)
    commands.lost("worker 5", "no answer for 3 s")
    lines = [re.sub(MS, "", record.getMessage()) for record in caplog.records]
    assert lines == [
        "worker 5: Exit -> 0",
        "worker 5: StopRing index=4 keeps_record=false drains=true -> no answer for 3 s",
    ]


def test_c2_nothing_of_it_without_that_level() -> None:
    with serve(Scripted) as served, served.guest() as guest:
        guest.status()
        assert not [line for line in served.lines if "GET_STATUS" in line or "DEBUG" in line]


def test_c2_what_comes_from_outside_has_a_bound_in_the_line() -> None:
    row = FRONT_END.named("SET_CONFIG")
    data = bytes(range(200))
    told = traffic.message_line(
        Message(row.number, payload=row.payload.encode(offset=4, flags=0, data=data))
    )
    assert told == f"SET_CONFIG offset=4 size=200 flags=0 data={data[:32].hex()}+168 bytes fds=[]"
    regions = [{"guest_addr": 4096 * n, "size": 4096} for n in range(20)]
    table = FRONT_END.named("SET_MEM_TABLE").payload.encode(items=regions)
    told = traffic.message_line(Message(FRONT_END.named("SET_MEM_TABLE").number, payload=table))
    assert told.count("guest_addr") == 16 and "and 4 more]" in told
    # Neither a number nor a length that the table knows.
    assert traffic.message_line(Message(99, payload=b"\n")) == "message 99 payload=0a fds=[]"
    assert "payload=00" in traffic.message_line(Message(row.number, payload=b"\0"))


def test_c2_answers_and_commands_in_words() -> None:
    protocol = Message(FRONT_END.named("GET_PROTOCOL_FEATURES").number)
    value = bytes(12) + U64.pack(value=ProtocolFeature.CONFIG)
    assert traffic.answer_line(protocol, value, 0, "") == "value=512"
    assert traffic.answer_line(protocol, None, 0, "") == "no reply"
    inflight = Message(FRONT_END.named("GET_INFLIGHT_FD").number)
    reply = bytes(12) + inflight.spec.reply_payload.encode(mmap_size=64) if inflight.spec else b""
    assert traffic.answer_line(inflight, reply, 1, "").endswith("queue_size=0 fds=1")
    read, write = map(Fd, os.pipe())
    with read, write:
        told = traffic.command_line(SetKick(1, read))
        assert told == f"SetKick index=1 fd=[{read.fileno()} pipe]"
