"""Carries out the plan of a reload on the device that runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vuproc import events, inquiries, place
from vuproc.device import Device
from vuproc.device_file.changes import Plan, Scope, compare, places
from vuproc.device_file.model import Socket
from vuproc.device_file.owner import ids_after
from vuproc.errors import ConfigErrors, VuprocError
from vuproc.events import Reloaded
from vuproc.inquiries import Answer, Command, Inquiry, Unanswered
from vuproc.listener import Listener
from vuproc.master import Master
from vuproc.ops.inquirer import Inquirer
from vuproc.pool.rolling_restart import RollingRestart
from vuproc.pool.watchdog import Watchdog
from vuproc.vhost_user.config_space import ConfigSpace

if TYPE_CHECKING:
    from vuproc.device_file.check import DeviceFile

log = logging.getLogger("vuproc.master")


MOST_INQUIRIES = 8
"""Programs that are run for one reload: a disk asks one store one question."""
IN_POSTCOPY = "a migration by postcopy is under way, and needs its worker: try again later"


Told = Callable[["list[str] | ReloadRefused"], None]


class Restart(Protocol):
    """How to begin anew."""

    def __call__(self, *, replaced: bool) -> None: ...  # noqa: D102


@runtime_checkable
class Linked(Protocol):
    """A device with a link to something."""

    def set_link(self, up: bool) -> None: ...  # noqa: D102


class ReloadRefused(VuprocError):
    """Nothing was changed; `lines` say why."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Reloader:
    """Reloads the device file. A chore of the master's loop.

    `load` reads the file anew; `set_file` has new workers be of the new kind; `restart` has this
    process begin anew, for what needs another session; `replaced` says that the device's files are
    to be opened anew then. Without `may_restart` what needs another session is refused.
    """

    def __init__(
        self,
        load: Callable[[], DeviceFile],
        file: DeviceFile,
        device: Device,
        config: ConfigSpace,
        master: Master,
        watchdog: Watchdog,
        set_file: Callable[[DeviceFile, Device], None],
        restart: Restart,
        *,
        may_restart: bool = True,
    ) -> None:
        self._load = load
        self._file = file
        self._device = device
        self._content = device.config_space()
        self._config = config
        self._master = master
        self._watchdog = watchdog
        self._set_file = set_file
        self._restart = restart
        self._can_restart = may_restart
        self._rolling = RollingRestart(master.pool)
        self._inquirer = Inquirer(master.selector)
        self._answers: dict[Command, Answer] = {}
        """What the reload that is under way knows from far away."""
        self._waits = False
        self._replaced = False

    def signalled(self) -> None:
        """SIGHUP: the log says what became of it."""

        def told(result: list[str] | ReloadRefused) -> None:
            for line in result.lines if isinstance(result, ReloadRefused) else ():
                log.error("reload refused: %s", line)

        self.reload(told)

    def reload(self, told: Told) -> None:
        """Read the file, apply what can be applied, and tell a line for each change; or that it is
        refused, since the file is not valid: then nothing has changed.

        It is told at once, or later if something far away has to be asked first.
        """
        if self._inquirer.busy:
            told(ReloadRefused(["a reload is under way"]))
        else:
            self._answers.clear()
            self._attempt(lambda: told(self._reload()), told)

    def _attempt(self, action: Callable[[], None], told: Told) -> None:
        """Do it with what is known; what it wants to know beside that is asked, and it is done
        from the beginning then.
        """
        try:
            with inquiries.answered_by(self._answers):
                action()
        except Unanswered as unanswered:
            self._inquire(unanswered.inquiry, action, told)
        except ReloadRefused as refusal:
            told(refusal)

    def _inquire(self, inquiry: Inquiry, action: Callable[[], None], told: Told) -> None:
        def answered(answer: Answer) -> None:
            self._answers[inquiry.command] = answer
            self._attempt(action, told)

        if len(self._answers) >= MOST_INQUIRIES:
            told(ReloadRefused([f"more than {MOST_INQUIRIES} questions to places far away"]))
            return
        try:
            self._inquirer.begin(inquiry, answered)
        except OSError as error:
            told(ReloadRefused([f"{inquiry.command[0]}: {error.strerror}"]))

    def _reload(self) -> list[str]:
        if self._rolling.under_way:
            raise ReloadRefused(["a reload is under way"])
        if self._master.pool.history.in_postcopy:
            raise ReloadRefused([IN_POSTCOPY])
        plan, device = self._plan()
        if plan.later is not None and not self._can_restart:
            text = "and this device, on an inherited descriptor, cannot begin anew"
            waiting = (Scope.SESSION, Scope.RESTART)
            lines = [change.text for change in plan.changes if change.scope in waiting]
            raise ReloadRefused([f"{line}, {text}" for line in lines])
        lines = [change.text for change in plan.changes]
        lines = lines or [f"{self._file.path}: nothing has changed"]
        for line in lines:
            log.info("reload: %s", line)
        return [*lines, *self._apply(plan, device)]

    def set_link(self, up: bool) -> bool:
        """Have a network device's link up or down; False if it has none."""
        if not isinstance(self._device, Linked):
            return False
        self._device.set_link(up)
        self._content = self._device.config_space()
        self._config.renew(self._device.config_space)
        self._master.config_changed()
        log.info("the link is %s", "up" if up else "down")
        return True

    def _plan(self) -> tuple[Plan, Device]:
        """What the file says by now, and the device of what can be applied at once."""
        try:
            new = self._load()
            found, shared = places(new.path), self._device.shared
            plan = compare(self._file, new, found, config=self._content, shared=shared)
            device = plan.now.make_device()
            device.shared = shared
            self._device.reloading()
        except ConfigErrors as errors:
            raise ReloadRefused([str(error) for error in errors.errors]) from errors
        except (Exception, SystemExit) as error:
            # The device's own code; it ran without complaint a moment ago.
            raise ReloadRefused([place.blame(error)]) from error
        return plan, device

    def _apply(self, plan: Plan, device: Device) -> list[str]:
        """Do what the plan says; a line for whatever of it could not be done after all."""
        before, before_device = self._file, self._device
        if plan.now.keys.log_level != before.keys.log_level:
            level = getattr(logging, plan.now.keys.log_level.upper())
            logging.getLogger("vuproc").setLevel(level)
            self._master.pool.set_log_level(level)
        self._master.set_exit_on_disconnect(plan.now.keys.exit_on_disconnect)
        self._watchdog.timeout_s = plan.now.keys.stall_timeout
        self._watchdog.hook_timeout_s = plan.now.keys.hook_timeout
        failures = []
        if plan.now.socket != before.socket:
            failures = self._permit(before.socket, plan.now.socket)
        self._waits = any(change.scope is Scope.SESSION for change in plan.changes)
        self._replaced = plan.replaced
        self._become(plan.now, device)
        if not plan.new_workers:
            return failures

        def done() -> None:
            events.publish(Reloaded(ok=True))
            if plan.config is not None:
                self._config.renew(device.config_space)
                self._content = plan.config
                self._master.config_changed()

        def failed() -> None:
            events.publish(Reloaded(ok=False))
            self._become(before, before_device)

        self._rolling.begin(done, failed)
        return failures

    def _become(self, file: DeviceFile, device: Device) -> None:
        self._file, self._device = file, device
        self._set_file(file, device)

    def _permit(self, before: Socket, after: Socket) -> list[str]:
        source = self._master.source
        try:
            if isinstance(source, Listener):
                source.permit(after.permissions, ids_after(before, after))
                return []
            failure = "the service manager made the socket, and says who may connect"
        except OSError as error:
            failure = f"{after.path}: who may connect could not be changed: {error.strerror}"
        log.error("reload: %s", failure)
        return [failure]

    # The chore.

    def due(self) -> float | None:
        """As the rolling restart and an inquiry; and at once if what waits for a new session need
        not wait.
        """
        if self._may_restart():
            return 0.0
        dues = [due for due in (self._rolling.due(), self._inquirer.due()) if due is not None]
        return min(dues, default=None)

    def tend(self) -> None:
        """See to them, and to what waited for the end of a session."""
        self._rolling.tend()
        self._inquirer.tend()
        if self._may_restart():
            self._waits = False
            self._answers.clear()
            self._attempt(self._begin_anew, self._go_on)

    def close(self) -> None:
        """The loop is over."""
        self._rolling.close()
        self._inquirer.close()

    def _go_on(self, result: list[str] | ReloadRefused) -> None:
        for line in result.lines if isinstance(result, ReloadRefused) else ():
            log.error("reload: going on as before: %s", line)

    def _begin_anew(self) -> None:
        """With what the file says by now, if that is still any good: there is no way back."""
        plan, _ = self._plan()
        if self._master.session is not None:
            self._waits = True  # one has begun while something far away was asked
            return
        log.info("reload: beginning anew with %s", self._file.path)
        self._restart(replaced=self._replaced and plan.replaced)

    def _may_restart(self) -> bool:
        under_way = self._rolling.under_way or self._inquirer.busy
        return self._waits and self._master.session is None and not under_way
