"""The pictures of the manual are those that their scripts draw, and need nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.manual import top_picture
from tests.manual.recovery_pictures import DOCS, PICTURES
from vuproc.testing import Guest, serve


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_of_recovery_is_as_it_is_drawn(path: Path) -> None:
    drawn = str(PICTURES[path]())
    assert path.read_text(encoding="utf-8") == drawn, "python -m tests.manual.recovery_pictures"


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_whole(path: Path) -> None:
    """It has a background of its own, so that it can be read on a dark page, too."""
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("}svg")
    assert "href" not in text and "@import" not in text and "@font-face" not in text
    box = next(each for each in root.iter() if each.tag.endswith("}rect") and "fill" in each.attrib)
    width = float(root.attrib["viewBox"].split()[2])
    assert float(box.attrib["width"]) > 0.9 * width


def test_top_is_drawn_of_a_run() -> None:
    """As docs/top.svg, in less time: rates of all queues, and the worker that was killed."""
    disk = {"type": "blk", "ram": "64MiB", "queues": top_picture.QUEUES}
    with (
        serve(disk) as served,
        Guest(served.socket, queues=top_picture.QUEUES, memory=64 << 20) as guest,
    ):
        picture = top_picture.drawn(served.socket, guest, served.kill_worker, seconds=0.2)
    text = re.sub(r"<[^>]+>", "", picture).replace("&#160;", " ")
    assert "requests/s" in text
    assert text.count("running") >= top_picture.QUEUES - 1
    assert "ended (killed by SIGKILL)" in text
