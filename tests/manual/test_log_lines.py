"""docs/troubleshooting.md has every line that is logged from level warning on, and no other."""

from __future__ import annotations

import re

from tests.manual.log_lines import GAP, ROOT, Line, said

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LINES = sorted(set(said()))
GOOD_NEWS = "reload: every worker is new"
"""An event whose level depends on how it ended."""
ELSEWHERE = {
    f"ring size {GAP} is above {GAP}",
    f"lines not shown, as nobody read them: {GAP}",
    f"the standby master ended ({GAP}), starting another",
    f"the shared forkserver ended ({GAP}), starting another",
}
"""What is put together before it is logged."""


def spans() -> list[str]:
    """What the page has as code, each in one line."""
    return [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", PAGE)]


def test_lines_are_found() -> None:
    """In calls of loggers, in events, in what the keeper says; and by place what has no text."""
    templates = {line.template for line in LINES}
    assert f"queue {GAP}: requests block, for there is {GAP}" in templates
    assert f"queue {GAP}: broken: {GAP}" in templates
    assert f"master {GAP} ended ({GAP}), starting another" in templates
    assert Line("vuproc/serve.py", "") in LINES
    assert len(templates) > 90


def test_each_line_has_an_entry() -> None:
    """A line that is nothing but somebody's words is there by the file that logs it."""
    there = {*spans(), GOOD_NEWS}
    missing = [line for line in LINES if (line.template or line.place) not in there]
    assert missing == [], "docs/troubleshooting.md lacks them: what do they mean, and what to do?"


def test_each_entry_is_of_a_line() -> None:
    """But for code that is no line: what has no gap may be a command or an option."""
    known = {line.template for line in LINES} | ELSEWHERE | {GAP}
    assert [each for each in spans() if GAP in each and each not in known] == []


def test_what_is_put_together_is_in_the_source() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "vuproc").rglob("*.py")]
    for text in ELSEWHERE:
        longest = max(re.split(rf"{GAP}|\(", text), key=len).strip()
        assert any(longest in source for source in sources), text
