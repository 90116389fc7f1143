"""The site of docs/ is built without a warning, and has what it is to have from the source."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import vuproc
import vuproc.testing
from docs.extensions import contents, generated, stubs
from vuproc.cli.main import CLIENTS
from vuproc.device_file.model import File
from vuproc.devices import BUILTIN
from vuproc.spec.vhost_user import BACK_END, FRONT_END

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILD_S = 240.0

pytestmark = pytest.mark.timeout(BUILD_S + 60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `CONTRIBUTING.md` says, and nothing is written beside the pages."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [*(sys.executable, "-m", "sphinx"), *("-q", "-W", "--keep-going", "-n")]
        + ["-d", str(out / "doctrees"), str(DOCS), str(out / "html")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=BUILD_S,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""
    return out / "html"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_every_page_is_built_and_in_the_tree(site: Path) -> None:
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    start = read(site / "index.html")
    sidebar = set(re.findall(r'class="reference internal" href="([^"#]+)\.html"', start))
    assert pages - sidebar == {"index"}
    assert all((site / f"{page}.html").is_file() for page in pages)
    for kind in "Tutorial", "How-to", "Reference", "Explanation":
        assert f'class="caption-text">{kind}<' in start


def test_a_link_to_another_page_leads_there(site: Path) -> None:
    """What Sphinx takes for a file to be downloaded it does not warn of."""
    for page in site.rglob("*.html"):
        assert not re.search(r'download[^>]*href="[^"]*\.md"', read(page)), page


def test_each_public_name_has_its_entry(site: Path) -> None:
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", os.path.join)
    names = {name.rpartition(".")[2] for kind in inventory for name in inventory[kind]}
    aliases = {"FilePath", "Size", "__version__"}
    assert set(vuproc.__all__) - aliases <= names
    assert set(vuproc.testing.__all__) <= names
    methods = {name for name in dir(vuproc.Device) if not name.startswith("_")} - {"attach"}
    entries = set(inventory["py:method"]) | set(inventory["py:attribute"])
    entries |= set(inventory["py:property"])
    assert methods <= {entry.rpartition(".")[2] for entry in entries}
    assert "vuproc.shm.request.Request.preadv" in entries


def test_native_methods_have_the_signatures_of_their_stubs(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", read(site / "api" / "request.html"))
    assert "preadv(file: int | HasFileno, offset: int, n: int = -1)" in " ".join(text.split())
    assert stubs.stub("vuproc.shm.request")["Request.queue"].signature == ""


def test_the_command_line_has_every_verb_and_option() -> None:
    text = generated.command_line()
    for verb in ("run", "check", "hint", "status", "reload", "upgrade", "top", "write-back"):
        assert f"## `vuproc {verb}`\n" in text
    assert "`--supervised`" in text and "`--memory SIZE`" in text
    assert all(client in text for client in CLIENTS)


def test_each_client_has_its_hint() -> None:
    text = generated.hints()
    assert all(f"## `vuproc hint {client}`\n" in text for client in CLIENTS)
    assert text.count("/run/vuproc/disk.sock") >= len(CLIENTS) - 1
    assert text.count("Refused") == 1  # DPDK has no disks


def test_every_option_of_every_device_is_there() -> None:
    text = generated.all_options()
    for name in BUILTIN:
        assert f"## `{name}`\n" in text
        assert (DOCS / "devices" / f"{name}.md").is_file()
    for key in File.__struct_fields__:
        assert f"| `{key}` |" in text


def test_every_message_is_there() -> None:
    text = generated.messages()
    for row in (*FRONT_END, *BACK_END):
        assert f"| {row.number} | `{row.name}` |" in text


def test_a_page_that_nobody_has_linked_is_found_all_the_same() -> None:
    text = "# x\n\n## A\n\n* [one](one.md), [two](two.md#part)\n\n## B\n\n[one](one.md)\n"
    text += "[all](folder/README.md) [one of them](folder/page.md) [out](../OUT.md)\n"
    pages = {"index", "one", "two", "new", "folder/README", "folder/page"}
    assert contents.sections(text) == {"A": ["one", "two"], "B": ["folder/README"]}
    assert contents.rest(text, pages, "index") == ["new"]
    assert ":caption: More\n\nnew\n" in contents.trees(text, pages, "index")


def test_an_unknown_mark_is_refused() -> None:
    with pytest.raises(KeyError):
        generated.filled("<!-- from the source: nothing -->")
