"""The filters of system calls: what each set lets through, on either machine, and what never."""

from __future__ import annotations

import errno
import itertools
from typing import get_args

import pytest

from tests.sandbox.filtered import Call, call, verdict
from vuproc.sandbox import calls as sets
from vuproc.sandbox import make
from vuproc.sandbox.bpf import ALLOW, ERRNO, KILL, TRAP, Bits, Case, Rule, fails_with, program
from vuproc.sandbox.calls import Calls, master_filter, worker_filter
from vuproc.sandbox.needs import Needs
from vuproc.spec.system_calls import AUDIT_ARCHES, NAMES, X32_BIT, numbers

PID = 4242
MACHINES = tuple(AUDIT_ARCHES)
NO, NOT_THERE = fails_with(errno.EPERM), fails_with(errno.ENOSYS)
AF_UNIX, AF_INET, AF_PACKET, AF_NETLINK = 1, 2, 17, 16
STREAM, DGRAM, SEQPACKET, CLOEXEC = 1, 2, 5, 0o2000000
CLONE_THREAD, CLONE_NEWUSER, SIGCHLD = 0x10000, 0x10000000, 17
ALL_CALLS = [
    Calls(strict=strict, attributes=attributes, network=network, uring=uring)
    for strict, attributes, network, uring in itertools.product(
        (False, True), (False, True), get_args(sets.Network), (False, True)
    )
]


def test_every_name_is_that_of_a_system_call() -> None:
    named = sets.WORK | sets.FILES | sets.ATTRIBUTES | sets.STRANGE | sets.URING | sets.CONNECTING
    assert named <= NAMES


def test_no_call_is_in_two_sets() -> None:
    parts = [sets.WORK, sets.FILES, sets.ATTRIBUTES, sets.STRANGE, sets.URING, sets.CONNECTING]
    for one, other in itertools.combinations(parts, 2):
        assert not one & other


@pytest.mark.parametrize("machine", MACHINES)
def test_no_two_calls_have_one_number(machine: str) -> None:
    known = numbers(machine)
    assert len(set(known.values())) == len(known)
    assert max(known.values()) < X32_BIT


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("wanted", ALL_CALLS, ids=str)
def test_each_set_is_let_through_where_it_is_wanted_and_nowhere_else(
    wanted: Calls, machine: str
) -> None:
    made = worker_filter(wanted, PID, machine)
    known = numbers(machine)

    def answers(names: frozenset[str]) -> set[int]:
        return {verdict(made, call(name, machine=machine)) for name in names if name in known}

    assert answers(sets.WORK) == {ALLOW}
    assert answers(sets.FILES) == {ALLOW}
    assert answers(sets.ATTRIBUTES) == {ALLOW if wanted.attributes else NO}
    assert answers(sets.STRANGE) == {TRAP}
    assert answers(sets.URING) == {ALLOW if wanted.uring else NO}
    assert answers(sets.CONNECTING - {"socket"}) == {NO if wanted.network == "off" else ALLOW}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_in_no_set_fails_or_if_strict_ends_the_worker(machine: str) -> None:
    for strict, expected in ((False, NO), (True, TRAP)):
        made = worker_filter(Calls(strict=strict), PID, machine)
        assert verdict(made, call("setresuid", machine=machine)) == expected
        assert verdict(made, call("mq_open", machine=machine)) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("strict", [False, True])
def test_a_call_that_is_not_known_is_not_there(machine: str, strict: bool) -> None:
    made = worker_filter(Calls(strict=strict), PID, machine)
    beyond = max(numbers(machine).values()) + 1
    assert verdict(made, Call(beyond, machine=machine)) == NOT_THERE
    assert verdict(made, Call(X32_BIT - 1, machine=machine)) == NOT_THERE


@pytest.mark.parametrize("make", [lambda: worker_filter(Calls(), PID, "x86_64"),
                                  lambda: master_filter("x86_64")])  # fmt: skip
def test_another_abi_ends_the_process(make: object) -> None:
    assert callable(make)
    made = make()
    read = numbers("x86_64")["read"]
    assert verdict(made, Call(read)) == ALLOW
    i386 = 0x40000003
    assert verdict(made, Call(read, arch=i386)) == KILL
    assert verdict(made, Call(read, arch=AUDIT_ARCHES["aarch64"])) == KILL
    assert verdict(made, Call(read | X32_BIT)) == KILL
    assert verdict(made, Call(-1)) == KILL
    assert verdict(made, Call(0x7FFFFFFF)) == KILL


def test_threads_are_made_and_processes_are_not() -> None:
    made = worker_filter(Calls(), PID, "x86_64")
    assert verdict(made, call("clone", 0x3D0F00)) == ALLOW  # what the C library's threads take
    assert verdict(made, call("clone", SIGCHLD)) == NO
    assert verdict(made, call("clone", CLONE_THREAD | CLONE_NEWUSER)) == NO
    assert verdict(made, call("clone3", 0, 88)) == NOT_THERE
    assert verdict(made, call("fork")) == NO
    assert verdict(made, call("vfork")) == NO


def test_signals_are_for_the_process_itself() -> None:
    made = worker_filter(Calls(), PID, "x86_64")
    for name in ("kill", "tgkill"):
        assert verdict(made, call(name, PID, 9)) == ALLOW
        for other in (PID + 1, 0, 1, -1, -PID):
            assert verdict(made, call(name, other, 9)) == NO
    assert verdict(made, call("tkill", PID, 9)) == NO
    assert verdict(made, call("pidfd_send_signal", 3, 9)) == NO


def test_upper_halves_of_arguments_change_nothing() -> None:
    made = worker_filter(Calls(), PID, "x86_64")
    assert verdict(made, call("kill", PID + 1 | PID << 32, 9)) == NO
    assert verdict(made, call("ioctl", 0, 0x5412 | 1 << 32)) == NO


@pytest.mark.parametrize(
    ("network", "families"), [("off", ()), ("unix", (AF_UNIX,)), ("on", (AF_UNIX, AF_INET))]
)
def test_sockets_are_of_the_families_that_are_wanted(
    network: sets.Network, families: tuple[int, ...]
) -> None:
    made = worker_filter(Calls(network=network), PID, "x86_64")
    for family in (AF_UNIX, AF_INET):
        expected = ALLOW if family in families else NO
        assert verdict(made, call("socket", family, STREAM | CLOEXEC)) == expected
    assert verdict(made, call("socket", AF_PACKET, 3)) == NO


def test_without_network_no_pair_is_one_of_datagrams() -> None:
    made = worker_filter(Calls(), PID, "x86_64")
    assert verdict(made, call("socketpair", AF_UNIX, STREAM | CLOEXEC)) == ALLOW
    assert verdict(made, call("socketpair", AF_UNIX, SEQPACKET)) == ALLOW
    assert verdict(made, call("socketpair", AF_UNIX, DGRAM)) == NO
    assert verdict(made, call("socketpair", AF_INET, STREAM)) == NO


def test_what_ties_a_worker_to_its_parent_is_not_undone() -> None:
    made = worker_filter(Calls(), PID, "x86_64")
    set_name, set_pdeathsig, set_dumpable, set_seccomp = 15, 1, 4, 22
    assert verdict(made, call("prctl", set_name)) == ALLOW
    for option in (set_pdeathsig, set_dumpable, set_seccomp):
        assert verdict(made, call("prctl", option)) == NO


def test_strict_makes_known_ioctls_alone() -> None:
    strict = worker_filter(Calls(strict=True, ioctls=False), PID, "x86_64")
    standard = worker_filter(Calls(), PID, "x86_64")
    fionread, i2c_rdwr, tiocsti = 0x541B, 0x0707, 0x5412
    assert verdict(strict, call("ioctl", 0, fionread)) == ALLOW
    assert verdict(strict, call("ioctl", 0, i2c_rdwr)) == NO
    assert verdict(standard, call("ioctl", 0, i2c_rdwr)) == ALLOW
    assert verdict(standard, call("ioctl", 0, tiocsti)) == NO
    with_devices = worker_filter(Calls(strict=True), PID, "x86_64")
    assert verdict(with_devices, call("ioctl", 0, i2c_rdwr)) == ALLOW
    assert verdict(with_devices, call("ioctl", 0, tiocsti)) == NO


def test_userfaultfd_is_for_postcopy() -> None:
    assert verdict(worker_filter(Calls(), PID, "x86_64"), call("userfaultfd", 0)) == TRAP
    made = worker_filter(Calls(userfault=True), PID, "x86_64")
    assert verdict(made, call("userfaultfd", 0)) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_a_master_lacks_what_nothing_of_it_uses(machine: str) -> None:
    made = master_filter(machine)
    for name, number in numbers(machine).items():
        answer = verdict(made, Call(number, machine=machine))
        assert answer == (NO if name in sets.NOT_OF_A_MASTER else ALLOW), name
    assert verdict(made, Call(900, machine=machine)) == ALLOW
    mark = call("ptrace", sets.MARK, machine=machine)
    assert verdict(made, mark) == ERRNO | sets.FILTER_ERRNO


def test_a_filter_is_short() -> None:
    """A call costs what it takes to find its number: by halves."""
    for wanted in ALL_CALLS:
        assert len(worker_filter(wanted, PID, "x86_64")) // 8 < 1024


def test_programs_by_themselves() -> None:
    rules = {
        3: Rule(ALLOW),
        7: Rule(TRAP, (Case((Bits(1, 0xFF, 5), Bits(0, 1, 0)), ALLOW),)),
    }
    made = program(1, rules, NO, NOT_THERE)

    def answer(number: int, *arguments: int) -> int:
        return verdict(made, Call(number, arguments, arch=1))

    assert [answer(number) for number in (0, 3, 4, 8)] == [NO, ALLOW, NO, NOT_THERE]
    assert answer(7, 2, 0x105) == ALLOW
    assert answer(7, 3, 0x105) == TRAP
    assert answer(7, 2, 6) == TRAP
    with pytest.raises(ValueError, match="errno"):
        fails_with(0)


def test_the_filters_of_most_devices_are_made_ahead() -> None:
    make.warm_up()
    before = worker_filter.cache_info().misses
    for files, uring in itertools.product(((), ("/disk",)), (False, True)):
        policy = make.make_policy("standard", Needs(files=files, io_uring=uring))
        assert policy is not None and policy.program
    assert worker_filter.cache_info().misses == before
