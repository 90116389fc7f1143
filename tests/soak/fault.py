"""What happens to a device in a soak: faults, and what is no fault but happens as often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from tests.soak.stage import Stage


class Fault(ABC):
    """One kind. After each one every queue must get on, with the same connection."""

    name: ClassVar[str]
    full: ClassVar[int]
    """How often the whole soak has it."""
    spares_master: ClassVar[bool] = True
    """Whether the master lives on: what it holds is watched while nothing else happens."""

    @classmethod
    def obstacle(cls, stage: Stage) -> str | None:
        """Why it cannot be had here, in words; None if it can."""
        return None

    @abstractmethod
    def strike(self, stage: Stage) -> None:
        """Have it happen, with requests in flight, and have it be over."""
