"""What ends the demonstration early."""

from __future__ import annotations

from vuproc.errors import VuprocError


class DemoFailed(VuprocError):
    """A check did not hold; the text says which."""
