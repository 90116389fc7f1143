"""What can go wrong with a client: it is not there, or it did not do its part."""

from __future__ import annotations

from collections.abc import Sequence

from vuproc.errors import VuprocError

# A guest prints thousands of lines while it boots; the reason of a failure stands in the last ones.
SHOWN_LINES = 40


class ClientMissing(VuprocError):
    """A client cannot be had here. `client` is its name, `reason` says what was looked for."""

    def __init__(self, client: str, reason: str) -> None:
        super().__init__(client, reason)
        self.client = client
        self.reason = reason

    def __str__(self) -> str:
        return f"no {self.client}: {self.reason}"


class GuestFailed(VuprocError):
    """A guest ran into a limit of time, died, or answered with an error.

    `what` says which; `output` holds the lines which it had printed.
    """

    def __init__(self, what: str, output: Sequence[str] = ()) -> None:
        super().__init__(what, output)
        self.what = what
        self.output = list(output)

    def __str__(self) -> str:
        return "\n  ".join([self.what, *self.output[-SHOWN_LINES:]])
