"""The parts of the comparison in a Linux guest that need no guest."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from tests.bench import fs_guest
from tests.bench.backends import Running
from tests.bench.fs_guest import Reads
from tests.bench.peers import uml_table
from vuproc.spec.vhost_user import FrontendRequest

TIMEOUT_S = 10.0


def test_a_table_of_regions_is_cut_to_its_number_and_descriptors_and_answers_pass(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as front:
        listener.bind(str(tmp_path / "behind"))
        listener.listen(1)
        for end in (listener, front):
            end.settimeout(TIMEOUT_S)
        behind = Running(tmp_path / "behind", list)
        with uml_table.cut(behind, tmp_path / "front") as reached:
            front.connect(str(reached.socket))
            back, _ = listener.accept()
            with back:
                back.settimeout(TIMEOUT_S)
                region = bytes(range(32))
                payload = struct.pack("<II", 1, 0) + region + bytes(32)
                header = uml_table.HEADER.pack(FrontendRequest.SET_MEM_TABLE, 1, len(payload))
                with open(os.devnull, "rb") as file:
                    socket.send_fds(front, [header + payload], [file.fileno()])
                said, fds, _, _ = socket.recv_fds(back, 4096, 4)
                for fd in fds:
                    os.close(fd)
                assert len(fds) == 1
                assert said == uml_table.HEADER.pack(5, 1, 40) + payload[:40]
                back.sendall(b"answer")
                assert front.recv(100) == b"answer"
                front.close()
                assert back.recv(100) == b""


def test_ratios_are_of_the_same_rounds() -> None:
    found = {
        "random": {
            "ours": {0: Reads(2000.0, 5.0), 1: Reads(9000.0, 1.0)},
            "theirs": {0: Reads(1000.0, 10.0)},
            "nobody": {},
        }
    }
    said = fs_guest.lines(found, {"nobody": "is not here"}, "theirs")
    assert any("2.00 of the rate, 0.50 of the CPU time of theirs" in line for line in said)
    assert said[-1] == "not measured: nobody: is not here"
    assert sum("thousand/s" in line for line in said) == 2
