"""What a device asks of the master, who has the back-end channel."""

from __future__ import annotations

from vuproc.mapping import ShmemAsk
from vuproc.sharing import ObjectAsk

Ask = ObjectAsk | ShmemAsk
