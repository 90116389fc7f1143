"""What becomes of something that a device has asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

OnOutcome = Callable[[Exception | None], None]
"""Takes what went wrong, or None."""


class Outcome(Generic[T]):
    """Comes later, and by then is known to whoever asked: by `then`, or by `await` in an `async
    def` of the device, which gives the value or raises what went wrong.
    """

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None
        """What went wrong, once it is done."""
        self.value: T | None = None
        """What came of it, if nothing went wrong."""
        self._waiting: list[OnOutcome] = []

    def then(self, callback: OnOutcome) -> None:
        """Call this once it is done, in the worker's thread: at once, if it is."""
        if self.done:
            callback(self.error)
        else:
            self._waiting.append(callback)

    def settle(
        self, error: Exception | None, call: Callable[..., object], value: T | None = None
    ) -> None:
        """It is done; `call` calls what waits for it. Not for devices."""
        self.done, self.error, self.value = True, error, value
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            call(callback, error)

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done:
            from asyncio import get_running_loop

            future = get_running_loop().create_future()

            def done(_error: Exception | None) -> None:
                if not future.done():
                    future.set_result(None)

            self.then(done)
            yield from future
        if self.error is not None:
            raise self.error
        return cast(T, self.value)
