"""The parent of a supervised master: keeps its descriptors, and starts another when it dies.

It speaks systemd's side of NOTIFY_SOCKET and LISTEN_FDS and does nothing else: no thread, no
mapping, nothing imported that may fail. `vuproc run --supervised` becomes this program (`alone.py`
has one device, `fleet.py` many). It is run without site packages, so that newly installed code can
be no reason for its end.

What the end of the master leads to:

    exit code 0                      the end, with 0
    an exit code before any master   the end, with that code: a device that never came up. AWAY is
      has said READY=1               1 then, unless a subclass tries again
    any other end after SIGTERM or   another master, which is to end as soon as it has taken over:
    SIGINT                           it removes what the last one has left. After CLEAN_UPS_MOST of
                                     them the end, with the master's code, or 1
    anything else                    another master, which is handed what is stored; at once if this
                                     one was up for STABLE_S, or up and has made way, as it was told
                                     to, or was killed by SIGKILL: that is nobody's fault here; else
                                     after a pause from BACK_OFF_S
    no process to be had for one     another try each second
    FAILURES_MOST such in a row      what is stored as "session." is dropped, so that the front-end
                                     is disconnected and the device may come up without it; if
                                     nothing is, the end with the master's code, or 1

Where another master comes from is the subclass's matter.

A master is born with the signals that are passed on to it blocked, and lets them in when it has
handlers for them: none of them ends it before it can act on it.

Whatever else a dead master leaves behind is killed before the next one starts: its workers, and all
that they have started. Descriptors are plain numbers here, as nothing of vuproc may be imported.
"""

import os
import signal
import time

from .descriptors import MAX_STORED, Store, Stored, close_all
from .error_output import ErrorOutput
from .inbox import Inbox
from .processes import PREFIX, described
from .standby import FIELD

MAX_NAME = 255
"""Bytes of a name."""
DEVICE_FILE = "device-file"
"""The name of what the device file says that is in force."""
SESSION = "session."
"""Names that begin so are dropped when no master survives what they stand for."""
EXIT_MAKES_WAY = 75
"""A master's exit code (EX_TEMPFAIL of sysexits.h) when it has made way for another. Not 0, with
which a device has ended in order; systemd starts another for it, too.
"""
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
OVERSLEPT_S = 2.0
"""Seconds that we may be late to find a master silent. If it is more the machine has stood still,
or its clock has jumped, and the master has had no time to show life.
"""
AWAY = 69
"""A master's exit code (EX_UNAVAILABLE of sysexits.h): nothing is wrong but that somebody whom the
device needs was not to be reached.
"""
TAKE_OVER_S = 5.0
"""Seconds in which a standby that was ready must have taken over."""
NOT_FOR_A_STANDBY = (signal.SIGQUIT, signal.SIGUSR1)
"""Signals that would end it; to the whole process group, they are meant for others."""


class Keeper:
    """One supervised device: the master that runs, if one does, and what is stored for the next.

    `stored` goes to every master. `name` is what lines about it begin with, "" for nothing. A
    subclass says where masters come from: `_begin` and what follows it.
    """

    def __init__(self, stored: Stored, output: ErrorOutput, name: str = "") -> None:
        self.master = 0  # its process id, 0: none
        self.code: int | None = None
        """The device's exit code, once it is not started again."""
        self._label = f"{name}: " if name else ""
        self._store = Store(stored, MAX_STORED)
        self._output = output
        self._up_since: float | None = None
        self._watchdog = 0.0
        self._life_s = WATCHDOG_S
        self._ever_up = False
        self._failures = 0
        self._lacking = False
        self._start_at: float | None = 0.0
        self._orphans_until = 0.0
        self._take_over_by: float | None = None
        self._held: list[int] = []
        self._stopping = 0  # the signal to end, if there was one
        self._clean_ups = 0
        self.inbox = Inbox(self._say)

    # Where masters come from.

    def _begin(self) -> int:
        """Start a master: its process id. 0: not now, `_start_at` says when. Raises OSError for no
        process to be had.
        """
        raise NotImplementedError

    def _kill_rest(self) -> bool:
        """SIGKILL what a dead master has left behind; whether any of it is there still."""
        raise NotImplementedError

    def _wish(self, wanted: bool) -> None:
        """The master wants a standby, or none."""

    def _heard(self, sender: int, text: str) -> None:
        """A process that is no master has sent a message."""

    def _discard(self) -> None:
        """There is to be no master any more."""

    # A turn of the loop.

    @property
    def over(self) -> bool:
        """The device has ended for good, and nothing is left of it."""
        return self.code is not None and not self._orphans_until

    @property
    def up(self) -> bool:
        """A master has said that it is."""
        return self._up_since is not None

    @property
    def stopping(self) -> bool:
        """It was told to end."""
        return bool(self._stopping)

    def due(self) -> float | None:
        """Seconds until something is due that no descriptor announces."""
        waits = []
        if self._take_over_by is not None:
            waits.append(self._take_over_by - time.monotonic())
        if self._orphans_until:
            waits.append(self._orphans_until - time.monotonic())
        elif self._start_at is not None:
            waits.append(self._start_at - time.monotonic())
        elif self._is_watched():
            waits.append(self._watchdog - time.monotonic())
        return min(waits) if waits else None

    def tend(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._orphans_until:
            if not self._kill_rest():
                self._orphans_until = 0.0
            elif now >= self._orphans_until:
                self._say("a process of the last master cannot be killed")
                self._orphans_until = 0.0
        if self._is_watched() and now >= self._watchdog + OVERSLEPT_S:
            self._say(
                f"stood still for {now - self._watchdog:.1f} s: the master has time once more"
            )
            self._watchdog = now + (WATCHDOG_S if self._stopping else self._life_s)
        elif self._is_watched() and now >= self._watchdog:
            silent = WATCHDOG_S if self._stopping else self._life_s
            self._say(f"master {self.master} has shown no life for {silent:g} s, killing it")
            os.kill(self.master, signal.SIGKILL)
            self._watchdog = now + WATCHDOG_S
        if self._take_over_by is not None and now >= self._take_over_by:
            self._say(f"the standby master has not taken over in {TAKE_OVER_S:g} s, killing it")
            os.kill(self.master, signal.SIGKILL)
            self._take_over_by = None
        due = self._start_at is not None and now >= self._start_at
        if due and not self._orphans_until and self.code is None:
            self._start()

    def _is_watched(self) -> bool:
        return self.master != 0 and (self._up_since is not None or self._stopping != 0)

    # The master's messages.

    def hear(self) -> None:
        """Take what masters have sent."""
        while (message := self.inbox.receive()) is not None:
            sender, text, numbers = message
            if self.master and sender == self.master:
                if self._obey(text, numbers):
                    continue
            elif sender:
                self._heard(sender, text)
            close_all(numbers)

    def _obey(self, text: str, numbers: list[int]) -> bool:
        """Do what the master says; whether its descriptors are stored now."""
        self._took_over()
        fields = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
        name = fields.get("FDNAME", "stored")[:MAX_NAME].replace(":", "_")
        if "READY" in fields and self._up_since is None:
            self._ever_up = True
            self._up_since = time.monotonic()
            self._watchdog = self._up_since + self._life_s
        if fields.get(FIELD) in ("0", "1"):
            self._wish(fields[FIELD] == "1")
        if "WATCHDOG" in fields:
            self._watchdog = time.monotonic() + self._life_s
        if "FDSTOREREMOVE" in fields:
            self._store.drop(name)
        if "FDSTORE" not in fields:
            return False
        if self._store.keep(name, numbers):
            return True
        self._say(f"more than {self._store.most} descriptors, {name} is not kept")
        return False

    def _takes_over(self) -> None:
        """The next master is a standby, and has to say so."""
        self._take_over_by = time.monotonic() + TAKE_OVER_S

    def _took_over(self) -> None:
        """The master speaks, and so it is no standby any more."""
        self._take_over_by = None
        held, self._held = self._held, []
        for number in held:
            os.kill(self.master, number)

    # Signals.

    def signalled(self, number: int) -> None:
        """A signal of PASSED_ON has come."""
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

    def close(self) -> None:
        """Close what is ours, once it is over."""
        self._store.clear()
        self.inbox.close()

    # Life and death.

    def _start(self) -> None:
        self._start_at = None
        try:
            pid = self._begin()
        except OSError as error:
            self._not_forked(error)
            return
        if not pid:
            return
        self.master = pid
        self._lacking = False
        if self._stopping:
            self._watchdog = time.monotonic() + WATCHDOG_S
            self._pass_on(self._stopping)

    def _environ(self) -> dict[str, str]:
        """What a master finds in its environment beside ours."""
        return {
            "NOTIFY_SOCKET": self.inbox.address,
            "WATCHDOG_USEC": str(int(self._life_s * 1e6)),
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

    def master_ended(self, code: int) -> None:
        """The master has, with this exit code, or by minus this signal."""
        pid, self.master = self.master, 0
        up_since, self._up_since = self._up_since, None
        self._take_over_by, self._held = None, []
        self._orphans_until = time.monotonic() + ORPHANS_S
        if code == 0:
            self._end(code)
        elif code > 0 and not self._ever_up:
            self._never_up(code)
        elif self._stopping:
            self._say(f"master {pid} ended ({described(code)}) before it had tidied up")
            self._clean_up(code)
        else:
            self._say(f"master {pid} ended ({described(code)}), starting another")
            up_s = 0.0 if up_since is None else time.monotonic() - up_since
            blameless = up_since is not None and code in (-signal.SIGKILL, EXIT_MAKES_WAY)
            stable = up_s >= STABLE_S or blameless
            self._failures = 0 if stable else self._failures + 1
            self._again(code)

    def _never_up(self, code: int) -> None:
        """The first master has failed."""
        self._end(1 if code == AWAY else code)

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
        self.code = code
        self._discard()
        self._orphans_until = time.monotonic() + ORPHANS_S
        self._store.clear()

    def _say(self, text: str) -> None:
        self._output.write(f"{PREFIX}{self._label}{text}")
