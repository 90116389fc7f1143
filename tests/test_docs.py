"""The manual is true where a program can tell: what it names is there, and it can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_imports import FLOORS

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
COLUMNS = 100

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w/.])((?:vuproc|tests|deploy|examples)/[\w./-]*\w)")
CODE = re.compile(r"`[^`]*`")
TEST_NAME = re.compile(r"\btest_[a-z0-9_]+\b(?!\.py)")

REPLACED = {
    "crew": "pool",
    "seat": "slot",
    "seats": "slots",
    "seated": "assigned",
    "renewal": "rolling restart",
    "veteran": "old worker",
    "leftovers": "zombie reaper",
    "nursery": "parent death",
    "witness": "uring lock",
    "estate": "fd store",
    "heir": "successor",
    "chronicle": "checkpoint",
    "journal": "state file",
    "frozen": "snapshot",
    "thawed": "restored",
    "thaw": "restore",
    "unbegun": "not started",
    "amended": "state changed",
}
"""Words that the code had once, and those of the field that it has now."""

ROW = re.compile(r"\| ([A-G])(\d+) \| .* \| ([^|]*) \|")
ROWS = {"A": 57, "B": 26, "C": 51, "D": 23, "E": 10, "F": 15, "G": 9}
HOSTILE = ROOT / "docs" / "hostile-input.md"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=name)


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is in no block of code."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchor(heading: str) -> str:
    """The name that a heading has in a link."""
    kept = re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower())
    return kept.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(line) for _, line in prose(page) if line.startswith("#")}


@pages()
def test_lines_are_wrapped(page: Path) -> None:
    """But for rows of a table, code, and what has no place to break at."""
    long = [
        f"{name(page)}:{number}: {len(line)} columns"
        for number, line in prose(page)
        if len(line) > COLUMNS
        and not line.startswith(("|", "    "))
        and re.search(r"\S +\S", CODE.sub("code", LINK.sub("link", line.strip().lstrip("*-"))))
    ]
    assert long == []


@pages()
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for number, line in prose(page):
        for target in LINK.findall(CODE.sub("", line)):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (heading and heading not in anchors(there)):
                broken.append(f"{name(page)}:{number}: {target}")
    assert broken == []


@pages()
def test_files_that_are_named_are_there(page: Path) -> None:
    """A native module may be named without the ending of its file, and many files by `*`."""
    missing = [
        f"{name(page)}: {path}"
        for path in NAMED.findall(page.read_text())
        if not ((ROOT / path).exists() or (ROOT / f"{path}.pyx").exists())
        and not any(ROOT.glob(f"{path}*"))
    ]
    assert missing == []


@pages()
def test_tests_that_are_named_are_there(page: Path) -> None:
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    for file, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
        assert f"def {test}(" in sources[ROOT / file], f"{name(page)}: {file}::{test}"
    for test in set(TEST_NAME.findall("\n".join(line for _, line in prose(page)))):
        known = any(f"def {test}(" in source for source in sources.values())
        known = known or any(path.stem == test for path in sources)
        # `test_a07_...` and the like stand for all that begin so.
        known = known or test.endswith("_")
        assert known, f"{name(page)}: there is no {test}"


@pytest.mark.parametrize("page", (*PAGES, ROOT / "CHANGELOG.md"), ids=name)
def test_words_are_those_of_the_field(page: Path) -> None:
    found = [
        f"{name(page)}:{number}: {word}: say {REPLACED[word.lower()]}"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        for word in re.findall(r"[A-Za-z]+", line)
        if word.lower() in REPLACED
    ]
    assert found == []


def rows() -> dict[str, list[str]]:
    """The rows of the catalogue, and what the last column has of each."""
    return {
        f"{letter}{number}": [each.strip() for each in tests.split(",")]
        for letter, number, tests in ROW.findall(HOSTILE.read_text())
    }


def test_the_catalogue_of_hostile_input_is_whole() -> None:
    wanted = [f"{letter}{n + 1}" for letter, count in ROWS.items() for n in range(count)]
    assert list(rows()) == wanted


def test_each_row_has_the_tests_that_it_names() -> None:
    """A folder has a test with the row's number, and "below" a note."""
    wrong = []
    for row, places in rows().items():
        letter, number = row[0].lower(), int(row[1:])
        here = re.compile(rf"def test_(?:[a-g]\d+_)*{letter}0?{number}_")
        for place in places:
            if place == "below":
                if not any(row in noted for noted in notes()):
                    wrong.append(f"{row}: no note")
            elif not any(
                here.search(path.read_text())
                for path in (ROOT / "tests").glob("*.py" if place == "tests" else f"{place}/*.py")
            ):
                wrong.append(f"{row}: no test in {place}")
    assert wrong == []


def notes() -> list[list[str]]:
    """The rows of each note below a table: `* D4: ...`, `* A32, A43: ...`, `* D20 to D23: ...`."""
    found = []
    for line in HOSTILE.read_text().splitlines():
        head = re.match(r"\* ([A-G]\d+(?:(?:, | to )[A-G]\d+)*):", line)
        if head:
            noted: list[str] = []
            for part in head[1].split(", "):
                first, _, last = part.partition(" to ")
                numbers = range(int(first[1:]), int((last or first)[1:]) + 1)
                noted += [f"{first[0]}{number}" for number in numbers]
            found.append(noted)
    return found


def test_the_floors_are_those_of_the_picture() -> None:
    """docs/architecture.md has them from the top, as tests/test_imports.py does."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("| floor |")[2].partition("\n\n")[0].splitlines()[2:]
    shown = [set(re.findall(r"`([\w/]+?)/?`", line.split("|")[1])) for line in table]
    wanted = [{each.removeprefix("vuproc.").replace(".", "/") for each in at} for at in FLOORS]
    assert shown == wanted
