"""All steps, by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from tests.systemd.inside import activation, crowd, folder, lives, logs, needs, service, target

Step = Callable[[], None]

PREFIX = "step_"


def all_steps() -> dict[str, Step]:
    """A step is a function of one of these modules whose name begins so."""
    found: dict[str, Step] = {}
    for module in (service, lives, activation, target, folder, logs, needs, crowd):
        for name, value in vars(module).items():
            if name.startswith(PREFIX):
                found[name.removeprefix(PREFIX)] = value
    return found
