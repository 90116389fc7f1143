"""Writes docs/compatibility.md."""

from __future__ import annotations

from tests.compatibility.marks import all_proofs
from tests.compatibility.page import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(all_proofs()), encoding="utf-8")
