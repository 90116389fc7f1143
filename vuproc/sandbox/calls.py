"""Which system calls a process may make: sets of names, and the filter that is made of them.

A worker's filter says what is allowed; the master's, which every process below it has as well, says
what is not. Three answers to a call that is not allowed:

* an errno where programs try and can do without: a fork, a signal, a socket. An author sees an
  exception at the line that asked for it;
* a trap where nothing of a device has any business: the process ends by SIGSYS, and its log names
  the call;
* the end at once for what comes by another ABI than this program's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal

from msgspec import Struct

from vuproc.sandbox.bpf import ALLOW, TRAP, Bits, Case, Rule, fails_with, program
from vuproc.spec.system_calls import AUDIT_ARCHES, MACHINE, NAMES, numbers


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


Network = Literal["off", "unix", "on"]
"""Sockets that may be made: none, those of this machine (AF_UNIX), all."""

WORK = _names(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek
    close close_range dup dup2 dup3 fcntl flock pipe pipe2 eventfd eventfd2
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 timerfd_create timerfd_settime timerfd_gettime signalfd signalfd4
    fstat fstatfs fsync fdatasync sync_file_range fallocate ftruncate fadvise64 readahead
    copy_file_range splice tee vmsplice sendfile memfd_create
    mmap munmap mremap mprotect madvise msync mincore brk mlock mlock2 munlock membarrier
    map_shadow_stack
    futex futex_waitv futex_wake futex_wait futex_requeue
    set_robust_list get_robust_list rseq set_tid_address arch_prctl
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times
    adjtimex clock_adjtime
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete
    getitimer setitimer alarm pause
    getpid gettid getppid getpgrp getpgid getsid
    getuid geteuid getgid getegid getresuid getresgid getgroups capget
    getrandom getcpu getrusage getrlimit sysinfo uname getpriority umask
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack
    restart_syscall exit exit_group
    sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min
    recvfrom recvmsg recvmmsg sendto sendmsg sendmmsg shutdown accept accept4
    getsockopt setsockopt getsockname getpeername
    """
)
"""On what is open, on the process itself, and on its memory. adjtimex(2), which
C libraries make of clock_adjtime, only tells a process that has no CAP_SYS_TIME when the next leap
second is.
"""

FILES = _names(
    """
    open openat openat2 creat stat lstat newfstatat statx access faccessat faccessat2
    readlink readlinkat getdents getdents64 getcwd chdir fchdir statfs
    mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
    mknod mknodat fgetxattr flistxattr
    getxattr lgetxattr listxattr llistxattr getxattrat listxattrat
    """
)
"""By path; Landlock says which are opened, made and removed."""

ATTRIBUTES = _names(
    """
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat truncate
    utime utimes futimesat utimensat
    setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr setxattrat removexattrat
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
    """
)
"""Not Landlock's matter, though a file is open to be read (truncate is since its third version): a
worker that has no files of its own to write makes none of them.
"""

STRANGE = _names(
    """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp
    execve execveat
    mount umount2 move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr
    pivot_root chroot setns unshare
    init_module finit_module delete_module kexec_load kexec_file_load reboot
    bpf perf_event_open userfaultfd keyctl add_key request_key
    open_by_handle_at swapon swapoff acct quotactl quotactl_fd nfsservctl
    settimeofday clock_settime sethostname setdomainname
    iopl ioperm modify_ldt vhangup lookup_dcookie syslog fanotify_init
    """
)
"""With other processes, the machine, or the kernel itself: a worker that tries is not the device
that was written."""

NOT_OF_A_MASTER = STRANGE - _names(
    "execve execveat unshare userfaultfd setns chroot kcmp open_by_handle_at syslog"
)
"""What fails in a master and all that it starts. Programs must be started, an operator's device may
run them, and its workers have namespaces and memory of their own to make."""

URING = _names("io_uring_setup io_uring_enter io_uring_register")
CONNECTING = _names("socket connect bind listen")

_NO = fails_with(errno.EPERM)
_NOT_THERE = fails_with(errno.ENOSYS)

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_CAN, _AF_VSOCK = 1, 2, 10, 16, 29, 40
_SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_KIND = 1, 5, 0xF
_CLONE_THREAD = 0x00010000
_NAMESPACES = 0x7E020000 | 0x80
"""CLONE_NEW*."""
_ALL = 0xFFFFFFFF

_HARMLESS_OPTIONS = (
    3,  # PR_GET_DUMPABLE
    15,  # PR_SET_NAME
    16,  # PR_GET_NAME
    21,  # PR_GET_SECCOMP
    23,  # PR_CAPBSET_READ
    29,  # PR_SET_TIMERSLACK
    30,  # PR_GET_TIMERSLACK
    39,  # PR_GET_NO_NEW_PRIVS
    0x53564D41,  # PR_SET_VMA
)
"""Of prctl(2). Not among them: what ties a worker to its parent, and hides its memory."""
_INTO_TERMINALS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
"""Put words into somebody else's mouth."""
_STRICT_IOCTLS = (
    0x5401,  # TCGETS: is it a terminal?
    0x5413,  # TIOCGWINSZ
    0x541B,  # FIONREAD
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
    0x80045430,  # TIOCGPTN: which terminal it is
    0x125E,  # BLKROGET
    0x1268,  # BLKSSZGET
    0x127B,  # BLKPBSZGET
    0x1277,  # BLKDISCARD
    0x127F,  # BLKZEROOUT
    0x80081272,  # BLKGETSIZE64
    0x400454D0,  # TUNSETOFFLOAD
    0x400454D9,  # TUNSETQUEUE
)
"""Those of open files, disks and TAPs."""


class Calls(Struct, frozen=True):
    """What a worker's filter lets it do beside its work."""

    strict: bool = False
    """What is not allowed is trapped, but for what has an errno of its own here."""
    attributes: bool = False
    """Change modes, owners, times and extended attributes by path."""
    network: Network = "off"
    uring: bool = False
    userfault: bool = False
    """Make a userfaultfd, for postcopy."""
    ioctls: bool = True
    """Any ioctl but those into terminals; a strict filter has a list otherwise."""


@cache
def worker_filter(calls: Calls, pid: int, machine: str = MACHINE) -> bytes:
    """The filter of the process `pid`. KeyError for a machine that there are no numbers for."""
    return _program(worker_rules(calls, pid), TRAP if calls.strict else _NO, machine)


def worker_rules(calls: Calls, pid: int) -> dict[str, Rule]:
    """The rules of that filter, by name."""
    rules = dict.fromkeys(WORK | FILES, Rule(ALLOW))
    rules |= dict.fromkeys(ATTRIBUTES, Rule(ALLOW if calls.attributes else _NO))
    rules |= dict.fromkeys(STRANGE, Rule(TRAP))
    rules |= dict.fromkeys(URING, Rule(ALLOW if calls.uring else _NO))
    rules |= _of_sockets(calls.network)
    rules |= _of_processes(pid)
    rules["prctl"] = _if_among(0, _HARMLESS_OPTIONS)
    if calls.userfault:
        rules["userfaultfd"] = Rule(ALLOW)
    if calls.strict and not calls.ioctls:
        rules["ioctl"] = _if_among(1, _STRICT_IOCTLS)
    else:
        cases = tuple(Case((Bits(1, _ALL, each),), _NO) for each in _INTO_TERMINALS)
        rules["ioctl"] = Rule(ALLOW, cases)
    return rules


def _if_among(argument: int, values: Iterable[int]) -> Rule:
    return Rule(_NO, tuple(Case((Bits(argument, _ALL, each),), ALLOW) for each in values))


def _of_sockets(network: Network) -> Mapping[str, Rule]:
    """A pair of streams reaches nobody; one of datagrams may be sent from to any path."""
    pairs = tuple(
        Case((Bits(0, _ALL, _AF_UNIX), Bits(1, _SOCK_KIND, kind)), ALLOW)
        for kind in (_SOCK_STREAM, _SOCK_SEQPACKET)
    )
    rules = {**dict.fromkeys(CONNECTING, Rule(_NO)), "socketpair": Rule(_NO, pairs)}
    if network == "off":
        return rules
    families: tuple[int, ...] = (_AF_UNIX,)
    if network == "on":
        families += (_AF_INET, _AF_INET6, _AF_NETLINK, _AF_CAN, _AF_VSOCK)
    rules |= dict.fromkeys(CONNECTING, Rule(ALLOW))
    return {**rules, "socket": _if_among(0, families), "socketpair": _if_among(0, (_AF_UNIX,))}


def _of_processes(pid: int) -> Mapping[str, Rule]:
    """Threads of its own, and signals to itself."""
    itself = _if_among(0, (pid,))
    itself_or_nobody = _if_among(0, (0, pid))
    thread = Bits(0, _CLONE_THREAD | _NAMESPACES, _CLONE_THREAD)
    return {
        # Its flags are in memory, where a filter does not see them; the C library then takes clone.
        "clone3": Rule(_NOT_THERE),
        "clone": Rule(_NO, (Case((thread,), ALLOW),)),
        "kill": itself,
        "tgkill": itself,
        "prlimit64": itself_or_nobody,
        "sched_setaffinity": itself_or_nobody,
        **dict.fromkeys(
            _names(
                "fork vfork tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal "
                "setpriority setpgid setsid sched_setscheduler sched_setparam sched_setattr "
                "wait4 waitid"
            ),
            Rule(_NO),
        ),
    }


MARK = 0x76757072
"""A ptrace request that no kernel knows: the master's filter answers it with its own version."""
FILTER_ERRNO = 3001
"""That answer. It goes up by one when the filter changes: an upgrade then adds its own."""


@cache
def master_filter(machine: str = MACHINE) -> bytes:
    """The filter of a master. KeyError for a machine that there are no numbers for."""
    rules = dict.fromkeys(NOT_OF_A_MASTER, Rule(_NO))
    mark = Case((Bits(0, _ALL, MARK),), fails_with(FILTER_ERRNO))
    rules["ptrace"] = Rule(_NO, (mark,))
    # Past the last call that is known there is nothing to say.
    return _program(rules, ALLOW, machine, unknown=ALLOW)


def _program(
    rules: Mapping[str, Rule], default: int, machine: str, unknown: int = _NOT_THERE
) -> bytes:
    known = numbers(machine)
    assert rules.keys() <= NAMES, rules.keys() - NAMES
    by_number = {known[name]: rule for name, rule in rules.items() if name in known}
    by_number.setdefault(max(known.values()), Rule(default))
    return program(AUDIT_ARCHES[machine], by_number, default, unknown)
