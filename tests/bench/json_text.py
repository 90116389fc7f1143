"""Results as JSON."""

from __future__ import annotations

import json
from typing import Any

DIGITS = 7
"""What a 32-bit float holds. The rest of a measured number is noise, and most of the file."""


def as_text(data: Any) -> str:
    """Indented JSON, with numbers of so many digits."""
    return json.dumps(_short(data), indent=1)


def _short(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case dict():
            return {key: _short(each) for key, each in value.items()}
        case list() | tuple():
            return [_short(each) for each in value]
        case _:
            return value
