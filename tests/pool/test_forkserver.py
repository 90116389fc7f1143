"""A forkserver that is a fork of its master; workers that are ordered before they are needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

HEAD = """\
import json, os, signal, sys, time
from vuproc.pool import forkserver as its
server = its.Forkserver(("vuproc.devices.rng:Rng",), 30.0)

def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(") ")[2].split()[1])

def end(started):
    started.control.close()
    started.stack.close()
    code = started.process.exit_code(10.0)
    started.process.pidfd.close()
    return code

def files(pid):
    folder = f"/proc/{pid}/fd"
    there = [each for each in os.listdir(folder) if os.path.islink(f"{folder}/{each}")]
    return {number: os.readlink(f"{folder}/{number}") for number in there}
"""
"""It is a process of its own that is forked: this one may have threads."""


def told(program: str) -> Any:
    """What the program prints, once it has ended well and said nothing else."""
    command = [sys.executable, "-c", HEAD + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_fork_of_the_master_has_nothing_of_what_is_open_there() -> None:
    found = told(
        """
os.chdir(sys.prefix)
read, write = os.pipe()
os.set_inheritable(write, True)
server.begin()
started = server.start()  # it serves by now
print(json.dumps([files(server.pid), os.readlink(f"/proc/self/fd/{write}"),
                  os.readlink(f"/proc/{server.pid}/cwd"), parent(server.pid) == os.getpid()]))
end(started)
server.close()
"""
    )
    theirs, pipe, folder, is_child = found
    assert pipe not in theirs.values()
    # Beside its standard descriptors the channel, its worker's pidfd, and for a moment what it was
    # sent for that one.
    assert theirs["0"] == "/dev/null"
    kinds = {target.partition(":")[0] for number, target in theirs.items() if int(number) > 2}
    assert kinds <= {"socket", "anon_inode", "pidfd", "/memfd"} and len(theirs) <= 7
    assert folder == "/" and is_child


def test_the_next_workers_are_those_that_were_ordered() -> None:
    parents, codes, left = told(
        """
server.begin()
server.order(3)
before = set(files(os.getpid()))
started = [server.start() for _ in range(4)]
parents = [parent(each.process.pid) == server.pid for each in started]
codes = [end(each) for each in started]
server.close()
print(json.dumps([parents, codes, sorted(set(files(os.getpid())) - before)]))
"""
    )
    assert parents == [True] * 4
    assert codes == [0] * 4
    assert left == []


def test_each_of_those_that_were_ordered_in_one_message_has_its_own_channel_alone() -> None:
    count, ended, others, codes = told(
        """
server.begin()
server.order(its.ORDERS_TOGETHER + 3)
started = [server.start() for _ in range(its.ORDERS_TOGETHER + 3)]
first = started.pop(0)
os.kill(first.process.pid, signal.SIGKILL)
first.control.settimeout(30)
ended = first.control.recv(1) == b""  # nobody else has its end
others = [each.process.pid for each in started if its.poll_until_readable(
    each.process.pidfd.fileno(), 0)]
codes = [end(first)] + [end(each) for each in started]
server.close()
print(json.dumps([len(started), ended, others, codes]))
"""
    )
    assert count > 8 and ended
    assert others == []
    assert codes == [-9] + [0] * count


def test_what_was_ordered_and_not_started_ends_with_the_forkserver() -> None:
    before, after, gone = told(
        """
before = len(files(os.getpid()))
server.begin()
server.order(3)
started = server.start()
pid = server.pid
end(started)
server.close()
print(json.dumps([before, len(files(os.getpid())), not os.path.exists(f"/proc/{pid}")]))
"""
    )
    assert before == after and gone


def test_those_that_have_waited_too_long_are_left_to_end() -> None:
    """They give up on their first command by themselves, perhaps at this moment."""
    pids, codes, children = told(
        """
server.begin()
server.order(2)
first = server.start()
its.ORDERED_S = 0.0
second = server.start()
pids = [each.process.pid for each in (first, second)]
deadline = time.monotonic() + 30
while True:
    with open(f"/proc/{server.pid}/task/{server.pid}/children") as file:
        children = sorted(map(int, file.read().split()))
    if len(children) <= 2 or time.monotonic() > deadline:
        break
    time.sleep(0.01)
codes = [end(each) for each in (first, second)]
server.close()
print(json.dumps([sorted(pids), codes, children]))
"""
    )
    assert codes == [0, 0]
    assert children == pids


def test_a_forkserver_that_is_killed_with_orders_is_replaced() -> None:
    other, code = told(
        """
server.begin()
server.order(2)
dead = server.pid
os.kill(dead, signal.SIGKILL)
started = server.start()
print(json.dumps([server.pid != dead and parent(started.process.pid) == server.pid, end(started)]))
server.close()
"""
    )
    assert other and code == 0
