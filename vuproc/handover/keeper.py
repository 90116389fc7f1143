"""The parent of a supervised master: keeps its descriptors, and starts another when it dies.

It speaks systemd's side of NOTIFY_SOCKET and LISTEN_FDS and does nothing else: no thread, no
mapping, nothing imported that may fail. `vuproc run --supervised` becomes this program. It is run
as a file, without site packages, so that newly installed code can be no reason for its end.

    python -I -S keeper.py [--hand NAME=NUMBER]... COMMAND [ARGUMENT...]

Each descriptor that is to be handed on goes to every master under its name.

What the end of the master leads to:

    exit code 0                      the end, with 0
    an exit code before any master   the end, with that code: a device that never came up
      has said READY=1
    any other end after SIGTERM or   another master, which is to end as soon as it has taken over:
    SIGINT                           it removes what the last one has left. After CLEAN_UPS_MOST of
                                     them the end, with the master's code, or 1
    anything else                    another master, which is handed what is stored; at once if this
                                     one was up for STABLE_S, or up and killed by SIGKILL, which is
                                     nobody's fault here; else after a pause from BACK_OFF_S
    no process to be had for one     another try each second
    FAILURES_MOST such in a row      what is stored as "session." is dropped, so that the front-end
                                     is disconnected and the device may come up without it; if
                                     nothing is, the end with the master's code, or 1

A master is born with the signals that are passed on to it blocked, and lets them in when it has
handlers for them: none of them ends it before it can act on it.

Whatever else a dead master leaves behind is killed before the next one starts: its workers, and all
that they have started. Descriptors are plain numbers here, as nothing of vuproc may be imported.
"""

import array
import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable

MAX_STORED = 4096
"""Descriptors that are kept, as many as a master takes over."""
MAX_NAME = 255
"""Bytes of a name."""
MAX_DATAGRAM = 4096
"""Bytes of a message, systemd's own bound."""
MAX_FDS = 253
"""Descriptors of a message, the kernel's SCM_MAX_FD."""
FIRST_FD = 3
"""Where a master's descriptors begin (SD_LISTEN_FDS_START)."""
SESSION = "session."
"""Names that begin so are dropped when no master survives what they stand for."""
BACK_OFF_S = (0.0, 0.01, 0.05, 0.25, 1.0)
"""Pause before another master, by the number of masters in a row that were not up for long."""
STABLE_S = 0.5
"""Seconds after READY=1 by which a master counts as up."""
FAILURES_MOST = 8
"""Masters in a row that may fail."""
CLEAN_UPS_MOST = 3
"""Masters that are started to end in the place of one that was told to and did not."""
ORPHANS_S = 2.0
"""Seconds in which killed workers must be gone; the next master fences those that are not."""
WATCHDOG_S = 60.0
"""Seconds without a sign of life after which a master that is up, or is to end, is killed. Longer
than it may wait for a worker to start.
"""
PREFIX = "vuproc keeper: "
"""What each line of ours begins with."""
LINE_BYTES = select.PIPE_BUF - 1
"""Bytes of the longest line: with its end, a pipe that has room takes it as a whole."""
SAY_LOST_S = 1.0
"""Seconds between two attempts to say that lines were lost."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FD_SIZE = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")
_SPACE = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE) + socket.CMSG_SPACE(_CREDENTIALS.size)


class Keeper:
    """One supervised device: the master that runs, if one does, and what is stored for the next."""

    def __init__(self, command: list[str], handed: list[tuple[str, int]]) -> None:
        self.master = 0  # its process id, 0: none
        self._command = command
        self._stored: list[tuple[str, int]] = [*_inherited(), *handed]
        self._output = ErrorOutput(PREFIX)
        self._up_since: float | None = None
        self._watchdog = 0.0
        self._ever_up = False
        self._failures = 0
        self._lacking = False
        self._start_at: float | None = 0.0
        self._orphans_until = 0.0
        self._stopping = 0  # the signal to end, if there was one
        self._clean_ups = 0
        self._code: int | None = None
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind("")  # an abstract name that the kernel chooses
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Keep a master running until one ends in order; returns the exit code."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_STORED + MAX_FDS + 64
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        # Whoever has started us may have had them wait until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        poller = select.poll()
        poller.register(self._notify, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while self._code is None or self._orphans_until:
            poller.poll(self._patience())
            self._hear()
            self._signalled()
            self._reap()
            self._tend()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the end they ask for has come
        return self._code

    def _patience(self) -> float | None:
        """Milliseconds until something is due that no descriptor announces."""
        waits = []
        if (lost := self._output.due()) is not None:
            waits.append(lost)
        if self._orphans_until:
            waits.append(self._orphans_until - time.monotonic())
        elif self._start_at is not None:
            waits.append(self._start_at - time.monotonic())
        elif self._is_watched():
            waits.append(self._watchdog - time.monotonic())
        return max(0.0, min(waits)) * 1000 + 1 if waits else None

    def _tend(self) -> None:
        self._output.say_lost()
        now = time.monotonic()
        if self._orphans_until:
            if not _kill_children(self.master):
                self._orphans_until = 0.0
            elif now >= self._orphans_until:
                self._say("a process of the last master cannot be killed")
                self._orphans_until = 0.0
        if self._is_watched() and now >= self._watchdog:
            self._say(f"master {self.master} has shown no life for {WATCHDOG_S:g} s, killing it")
            os.kill(self.master, signal.SIGKILL)
            self._watchdog = now + WATCHDOG_S
        due = self._start_at is not None and now >= self._start_at
        if due and not self._orphans_until and self._code is None:
            self._start()

    def _is_watched(self) -> bool:
        return self.master != 0 and (self._up_since is not None or self._stopping != 0)

    # The master's messages.

    def _hear(self) -> None:
        while True:
            try:
                data, ancillary, flags, _ = self._notify.recvmsg(
                    MAX_DATAGRAM, _SPACE, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            sender, numbers = 0, array.array("i")
            for level, kind, block in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers.frombytes(block[: len(block) - len(block) % _FD_SIZE])
                elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    sender, user, _ = _CREDENTIALS.unpack(block[: _CREDENTIALS.size])
                    sender = sender if user == os.getuid() else 0
            taken = False
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self._say("a message was too long, or there is no room for its descriptors")
            elif self.master and sender == self.master:
                taken = self._obey(data, list(numbers))
            if not taken:
                _close(list(numbers))

    def _obey(self, data: bytes, numbers: list[int]) -> bool:
        """Do what the master says; whether its descriptors are stored now."""
        fields = dict(
            line.split("=", 1) for line in data.decode(errors="replace").split("\n") if "=" in line
        )
        name = fields.get("FDNAME", "stored")[:MAX_NAME].replace(":", "_")
        if "READY" in fields and self._up_since is None:
            self._ever_up = True
            self._up_since = time.monotonic()
            self._watchdog = self._up_since + WATCHDOG_S
        if "WATCHDOG" in fields:
            self._watchdog = time.monotonic() + WATCHDOG_S
        if "FDSTOREREMOVE" in fields:
            self._drop(name)
        if "FDSTORE" not in fields:
            return False
        if len(self._stored) + len(numbers) > MAX_STORED:
            self._say(f"more than {MAX_STORED} descriptors, {name} is not kept")
            return False
        self._stored += [(name, number) for number in numbers]
        return True

    def _drop(self, name: str, *, prefix: bool = False) -> bool:
        """Close what is stored under the name, or under every name that begins so."""
        dropped = [
            entry
            for entry in self._stored
            if entry[0] == name or (prefix and entry[0].startswith(name))
        ]
        self._stored = [entry for entry in self._stored if entry not in dropped]
        _close([number for _, number in dropped])
        return bool(dropped)

    # Signals.

    def _signalled(self) -> None:
        try:
            numbers = os.read(self._wake, 64)
        except BlockingIOError:
            return
        for number in numbers:
            if number not in PASSED_ON:
                continue
            if number in (signal.SIGTERM, signal.SIGINT) and not self._stopping:
                self._stop(number)
            elif self.master:
                os.kill(self.master, number)

    def _stop(self, number: int) -> None:
        self._stopping = number
        self._watchdog = time.monotonic() + WATCHDOG_S
        if self.master:
            os.kill(self.master, number)
        elif not self._ever_up and not self._stored:
            self._end(0)  # there was none that could have left something
        else:
            self._clean_up(1)

    def _clean_up(self, code: int) -> None:
        """Have another master end in the place of the last."""
        if self._clean_ups == CLEAN_UPS_MOST:
            self._say("no master ends in order: its sockets and its shared memory may be left")
            self._end(max(code, 1))
            return
        self._clean_ups += 1
        self._start_at = time.monotonic()

    # Life and death.

    def _start(self) -> None:
        self._start_at = None
        keeper = os.getpid()
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": "@" + self._notify.getsockname()[1:].decode(),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        # It is born with them blocked, and execve(2) keeps them so: what comes early waits.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._not_forked(error)
            return
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.master = pid
            self._lacking = False
            if self._stopping:
                self._watchdog = time.monotonic() + WATCHDOG_S
                os.kill(pid, self._stopping)
            return
        try:
            # It must not outlive us unkept. We are single-threaded, so this is about our end alone.
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == keeper:
                become(self._command, self._stored, environ)
        except BaseException as error:
            # Not through a descriptor of before: they may be mixed up.
            ErrorOutput(PREFIX).write(f"{PREFIX}cannot start {self._command[0]}: {error}")
        finally:
            os._exit(127)

    def _not_forked(self, error: OSError) -> None:
        """No master had a chance: it is tried again, for as long as it takes."""
        if not self._lacking:
            self._say(f"cannot start a master: fork: {error.strerror}; trying again")
        self._lacking = True
        if self._stopping:
            self._clean_up(1)
        else:
            self._start_at = time.monotonic() + BACK_OFF_S[-1]

    def _reap(self) -> None:
        """Take note of every process that has ended: the master, or one that it has left behind."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid == self.master:
                # Its last words are in the queue still, and with its number they can be told from
                # a stranger's.
                self._hear()
            _, status = os.waitpid(found.si_pid, 0)
            if found.si_pid == self.master:
                self._master_ended(os.waitstatus_to_exitcode(status))

    def _master_ended(self, code: int) -> None:
        pid, self.master = self.master, 0
        up_since, self._up_since = self._up_since, None
        self._orphans_until = time.monotonic() + ORPHANS_S
        if code == 0 or (code > 0 and not self._ever_up):
            self._end(code)
        elif self._stopping:
            self._say(f"master {pid} ended ({_described(code)}) before it had tidied up")
            self._clean_up(code)
        else:
            self._say(f"master {pid} ended ({_described(code)}), starting another")
            up_s = 0.0 if up_since is None else time.monotonic() - up_since
            stable = up_s >= STABLE_S or (up_since is not None and code == -signal.SIGKILL)
            self._failures = 0 if stable else self._failures + 1
            self._again(code)

    def _again(self, code: int) -> None:
        """Another master is wanted: say when, or that there is no use."""
        if self._failures > FAILURES_MOST:
            self._failures = 0
            if not self._drop(SESSION, prefix=True):
                self._say("giving up")
                self._end(max(code, 1))
                return
            self._say("no master survives this session: the front-end is disconnected")
        pause = BACK_OFF_S[min(self._failures, len(BACK_OFF_S) - 1)]
        self._start_at = time.monotonic() + pause

    def _end(self, code: int) -> None:
        self._start_at = None
        self._code = code
        _close([number for _, number in self._stored])
        self._stored.clear()

    def _say(self, text: str) -> None:
        self._output.write(PREFIX + text)


class ErrorOutput:
    """Standard error, for one who must not wait for whoever reads it.

    A line for which there is no room is lost and counted; the count is shown once there is room.
    Stands in this file, which imports nothing of vuproc, and is the master's as well. `prefix` is
    what the line with the count begins with, `number` the descriptor.
    """

    def __init__(self, prefix: str, number: int = 2) -> None:
        self.lost = 0
        self._prefix = prefix
        self._encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        self._rest = b""
        self._say_lost_at = 0.0
        self._socket: socket.socket | None = None
        self._own = -1
        self._write = self._way(number)

    def write(self, text: str) -> None:
        """Show `text`, which may be several lines, each as far as `LINE_BYTES` go."""
        for line in text.encode(self._encoding, "backslashreplace").split(b"\n"):
            if not (self.say_lost() and self._put(line)):
                self.lost += 1
                self._say_lost_at = time.monotonic() + SAY_LOST_S

    def say_lost(self) -> bool:
        """Show how many lines were lost, if some were; whether that is said."""
        if self.lost:
            notice = f"{self._prefix}lines not shown, as nobody read them: {self.lost}"
            if not self._put(notice.encode(self._encoding, "backslashreplace")):
                self._say_lost_at = time.monotonic() + SAY_LOST_S
                return False
            self.lost = 0
        return True

    def due(self) -> float | None:
        """Seconds until `say_lost` is worth another try, or None if nothing was lost."""
        return max(0.0, self._say_lost_at - time.monotonic()) if self.lost else None

    def close(self) -> None:
        """Close what was opened for this; the descriptor itself stays."""
        _close([self._own] if self._own >= 0 else [])
        if self._socket is not None:
            self._socket.close()

    def _put(self, line: bytes) -> bool:
        try:
            self._rest = self._rest[self._write(self._rest) :] if self._rest else b""
            if self._rest:
                return False
            data = line[:LINE_BYTES] + b"\n"
            self._rest = data[self._write(data) :]
        except OSError as error:
            # For any other reason nobody can ever read it, and it counts as shown.
            return error.errno not in (errno.EAGAIN, errno.ENOSPC, errno.EDQUOT)
        return True

    def _way(self, number: int) -> Callable[[bytes], int]:
        """How to write without waiting: the descriptor's own flags are those of its other users,
        so O_NONBLOCK must not be set there.
        """
        try:
            mode = os.fstat(number).st_mode
        except OSError:
            return len  # closed: nobody is there to read
        if stat.S_ISSOCK(mode):
            stream = self._socket = socket.socket(fileno=os.dup(number))
            return lambda data: stream.send(data, socket.MSG_DONTWAIT)
        if not (stat.S_ISFIFO(mode) or os.isatty(number)):
            return lambda data: os.write(number, data)
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._own = os.open(f"/proc/self/fd/{number}", flags)
        except OSError:
            return lambda data: _write_if_ready(number, data)
        return lambda data: os.write(self._own, data)


def _write_if_ready(number: int, data: bytes) -> int:
    """As write(2), where the open file cannot be opened anew: another user's. The room that poll
    has seen is enough, unless somebody else takes it in between.
    """
    poller = select.poll()
    poller.register(number, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError(errno.EAGAIN, "no room")
    return os.write(number, data)


def become(command: list[str], stored: list[tuple[str, int]], environ: dict[str, str]) -> None:
    """Replace this process by `command`, with the descriptors from 3 on and their names announced.

    Raises OSError if that cannot be done, and then this process's descriptors may be mixed up.
    """
    _arrange([number for _, number in stored])
    for key in ("LISTEN_PIDFDID", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_PID"):
        environ.pop(key, None)
    if "WATCHDOG_USEC" in environ:
        environ["WATCHDOG_PID"] = str(os.getpid())
    if stored:
        environ["LISTEN_PID"] = str(os.getpid())
        environ["LISTEN_FDS"] = str(len(stored))
        environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in stored)
    os.execvpe(command[0], command, environ)


def _arrange(numbers: list[int]) -> None:
    """Move these descriptors to the numbers from FIRST_FD on, in their order, for execve(2).

    One number more than they have is enough for that. A number may be there several times.
    """
    left: dict[int, list[int]] = {}  # number: the places for which it is still wanted
    for place, number in enumerate(numbers, FIRST_FD):
        left.setdefault(number, []).append(place)
    for place in range(FIRST_FD, FIRST_FD + len(numbers)):
        number = numbers[place - FIRST_FD]
        left[number].remove(place)
        if number == place:
            os.set_inheritable(place, True)
            continue
        if left.get(place):  # out of the way
            moved = fcntl.fcntl(place, fcntl.F_DUPFD_CLOEXEC, place)
            left[moved] = left.pop(place)
            for later in left[moved]:
                numbers[later - FIRST_FD] = moved
        os.dup2(number, place, inheritable=True)
        if not left[number] and number > place:
            os.close(number)


def _described(code: int) -> str:
    try:
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:  # a real-time one, which has no name
        return f"killed by signal {-code}"


def _inherited() -> list[tuple[str, int]]:
    """What we were started with ourselves, by socket activation: it goes to every master."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) > MAX_STORED:
        return []
    numbers = range(FIRST_FD, FIRST_FD + int(count))
    for number in numbers:
        os.set_inheritable(number, False)
    names += ["unknown"] * (len(numbers) - len(names))
    return list(zip([name or "unknown" for name in names], numbers, strict=False))


def _kill_children(spared: int) -> bool:
    """SIGKILL every child but one; whether there are any, zombies among them.

    They are what a dead master has left: those that it had started are ours now.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        return False  # a kernel without that list; workers end by themselves, and are fenced
    for child in children:
        if child != spared:
            try:
                os.kill(child, signal.SIGKILL)
            except PermissionError:
                pass  # a program of the device's that has become another user's
    return any(child != spared for child in children)


def _close(numbers: list[int]) -> None:
    for number in numbers:
        try:
            os.close(number)
        except OSError:
            pass


def _prctl(option: int, value: int) -> None:
    # Both options are older than any kernel that Python 3.11 runs on.
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _open_closed() -> None:
    """Let /dev/null be standard input, output and error where one of them is closed.

    Their numbers would be given to files of ours, and masters would print into those.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def main(arguments: list[str]) -> int:
    """Keep the command that the arguments are."""
    _open_closed()
    handed = []
    while len(arguments) > 1 and arguments[0] == "--hand":
        name, _, number = arguments[1].partition("=")
        os.set_inheritable(int(number), False)
        handed.append((name, int(number)))
        arguments = arguments[2:]
    if not arguments:
        ErrorOutput(PREFIX).write(f"{PREFIX}no command to run")
        return 2
    return Keeper(arguments, handed).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
