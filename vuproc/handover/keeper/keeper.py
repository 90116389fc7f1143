"""The parent of a supervised master: keeps its descriptors, and starts another when it dies.

It speaks systemd's side of NOTIFY_SOCKET and LISTEN_FDS and does nothing else: no thread, no
mapping, nothing imported that may fail. `vuproc run --supervised` becomes this program. It is run
without site packages, so that newly installed code can be no reason for its end.

    python -I -S __main__.py [--hand NAME=NUMBER]... COMMAND [ARGUMENT...]

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

Another master is the standby master, if one is ready (`standby.py`); else it is started.

A master is born with the signals that are passed on to it blocked, and lets them in when it has
handlers for them: none of them ends it before it can act on it.

Whatever else a dead master leaves behind is killed before the next one starts: its workers, and all
that they have started. Descriptors are plain numbers here, as nothing of vuproc may be imported.
"""

import os
import resource
import select
import signal
import time

from .descriptors import MAX_STORED, Store, Stored, close_all, inherited, open_closed
from .error_output import ErrorOutput
from .inbox import MAX_FDS, Inbox
from .processes import PASSED_ON, PREFIX, adopt_orphans, described, kill_children, started
from .standby import FIELD, Standby
from .standby import NAME as STANDBY

MAX_NAME = 255
"""Bytes of a name."""
DEVICE_FILE = "device-file"
"""The name of what the device file says that is in force."""
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
TAKE_OVER_S = 5.0
"""Seconds in which a standby that was ready must have taken over."""
NOT_FOR_A_STANDBY = (signal.SIGQUIT, signal.SIGUSR1)
"""Signals that would end it; to the whole process group, they are meant for others."""


class Keeper:
    """One supervised device: the master that runs, if one does, and what is stored for the next."""

    def __init__(self, command: list[str], handed: Stored) -> None:
        self.master = 0  # its process id, 0: none
        self._command = command
        self._store = Store([*inherited(), *handed], MAX_STORED)
        self._output = ErrorOutput(PREFIX)
        self._up_since: float | None = None
        self._watchdog = 0.0
        self._ever_up = False
        self._failures = 0
        self._lacking = False
        self._start_at: float | None = 0.0
        self._orphans_until = 0.0
        self._take_over_by: float | None = None
        self._held: list[int] = []
        self._stopping = 0  # the signal to end, if there was one
        self._clean_ups = 0
        self._code: int | None = None
        self._inbox = Inbox(self._say)
        self._standby = Standby(self._start_standby, self._say)
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Keep a master running until one ends in order; returns the exit code."""
        adopt_orphans()
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
        poller.register(self._inbox, select.POLLIN)
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
        for due in (self._take_over_by, self._standby_due()):
            if due is not None:
                waits.append(due - time.monotonic())
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
            if not kill_children((self.master, self._standby.pid)):
                self._orphans_until = 0.0
            elif now >= self._orphans_until:
                self._say("a process of the last master cannot be killed")
                self._orphans_until = 0.0
        if self._is_watched() and now >= self._watchdog:
            self._say(f"master {self.master} has shown no life for {WATCHDOG_S:g} s, killing it")
            os.kill(self.master, signal.SIGKILL)
            self._watchdog = now + WATCHDOG_S
        if self._take_over_by is not None and now >= self._take_over_by:
            self._say(f"the standby master has not taken over in {TAKE_OVER_S:g} s, killing it")
            os.kill(self.master, signal.SIGKILL)
            self._take_over_by = None
        if (due_at := self._standby_due()) is not None and now >= due_at:
            self._standby.tend()
        due = self._start_at is not None and now >= self._start_at
        if due and not self._orphans_until and self._code is None:
            self._start()

    def _standby_due(self) -> float | None:
        """A master that is to end needs none, nor is one started while there is no master."""
        return self._standby.due() if self.master and not self._stopping else None

    def _is_watched(self) -> bool:
        return self.master != 0 and (self._up_since is not None or self._stopping != 0)

    # The master's messages.

    def _hear(self) -> None:
        while (message := self._inbox.receive()) is not None:
            sender, text, numbers = message
            if self.master and sender == self.master:
                if self._obey(text, numbers):
                    continue
            elif sender and sender == self._standby.pid and text == f"{FIELD}=ready":
                self._standby.ready()
            close_all(numbers)

    def _obey(self, text: str, numbers: list[int]) -> bool:
        """Do what the master says; whether its descriptors are stored now."""
        self._took_over()
        fields = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
        name = fields.get("FDNAME", "stored")[:MAX_NAME].replace(":", "_")
        if "READY" in fields and self._up_since is None:
            self._ever_up = True
            self._up_since = time.monotonic()
            self._watchdog = self._up_since + WATCHDOG_S
        if fields.get(FIELD) in ("0", "1"):
            self._standby.wish(fields[FIELD] == "1")
        if "WATCHDOG" in fields:
            self._watchdog = time.monotonic() + WATCHDOG_S
        if "FDSTOREREMOVE" in fields:
            self._store.drop(name)
        if "FDSTORE" not in fields:
            return False
        if self._store.keep(name, numbers):
            return True
        self._say(f"more than {self._store.most} descriptors, {name} is not kept")
        return False

    def _took_over(self) -> None:
        """The master speaks, and so it is no standby any more."""
        self._take_over_by = None
        held, self._held = self._held, []
        for number in held:
            os.kill(self.master, number)

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
                self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        """A standby forgets what came before it has taken over: until then it is held here."""
        if self._take_over_by is None:
            os.kill(self.master, number)
        else:
            self._held.append(number)

    def _stop(self, number: int) -> None:
        self._stopping = number
        self._watchdog = time.monotonic() + WATCHDOG_S
        if self.master:
            self._pass_on(number)
        elif not self._ever_up and not self._store.entries:
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
        pid = self._standby.take(self._store.entries)
        if pid:
            self._take_over_by = time.monotonic() + TAKE_OVER_S
        else:
            try:
                pid = started(
                    self._command, self._store.entries, self._environ(), at_our_end=signal.SIGTERM
                )
            except OSError as error:
                self._not_forked(error)
                return
        self.master = pid
        self._lacking = False
        if self._stopping:
            self._watchdog = time.monotonic() + WATCHDOG_S
            self._pass_on(self._stopping)

    def _start_standby(self, channel: int) -> int:
        # What is in force may say what is worth importing. Of a session it has nothing.
        given = [entry for entry in self._store.entries if entry[0] == DEVICE_FILE]
        given.append((STANDBY, channel))
        return started(
            self._command,
            given,
            self._environ(),
            at_our_end=signal.SIGKILL,
            ignoring=NOT_FOR_A_STANDBY,
        )

    def _environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "NOTIFY_SOCKET": self._inbox.address,
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
            "VUPROC_KEEPER": str(os.getpid()),
        }

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
            code = os.waitstatus_to_exitcode(status)
            if found.si_pid == self.master:
                self._master_ended(code)
            elif found.si_pid == self._standby.pid:
                self._standby.ended(code)

    def _master_ended(self, code: int) -> None:
        pid, self.master = self.master, 0
        up_since, self._up_since = self._up_since, None
        self._take_over_by, self._held = None, []
        self._orphans_until = time.monotonic() + ORPHANS_S
        if code == 0 or (code > 0 and not self._ever_up):
            self._end(code)
        elif self._stopping:
            self._say(f"master {pid} ended ({described(code)}) before it had tidied up")
            self._clean_up(code)
        else:
            self._say(f"master {pid} ended ({described(code)}), starting another")
            up_s = 0.0 if up_since is None else time.monotonic() - up_since
            stable = up_s >= STABLE_S or (up_since is not None and code == -signal.SIGKILL)
            self._failures = 0 if stable else self._failures + 1
            self._again(code)

    def _again(self, code: int) -> None:
        """Another master is wanted: say when, or that there is no use."""
        if self._failures > FAILURES_MOST:
            self._failures = 0
            if not self._store.drop(SESSION, prefix=True):
                self._say("giving up")
                self._end(max(code, 1))
                return
            self._say("no master survives this session: the front-end is disconnected")
        pause = BACK_OFF_S[min(self._failures, len(BACK_OFF_S) - 1)]
        self._start_at = time.monotonic() + pause

    def _end(self, code: int) -> None:
        self._start_at = None
        self._code = code
        self._standby.discard()
        self._orphans_until = time.monotonic() + ORPHANS_S
        self._store.clear()

    def _say(self, text: str) -> None:
        self._output.write(PREFIX + text)


def main(arguments: list[str]) -> int:
    """Keep the command that the arguments are."""
    open_closed()
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
