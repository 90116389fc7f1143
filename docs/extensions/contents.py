"""The tree of the site's pages, from the links that the pages themselves have.

docs/index.md is a list of links under the headings of Tutorial, How-to, Reference and Explanation,
to be read anywhere. Each heading gets a tree of the pages that its links lead to. A page that
nobody has put there yet is found under "More", so that none is ever out of reach.

The README of a folder gets a tree of all pages of the folder.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from sphinx.application import Sphinx

HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)\.md(?:#[^)\s]*)?\)")
FOLDER_PAGE = "README"
REST = "More"


def sections(text: str) -> dict[str, list[str]]:
    """The pages that are linked to under each heading of the second level, each page once."""
    parts = HEADING.split(text)[1:]
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for heading, content in zip(parts[::2], parts[1::2], strict=True):
        pages = [page for page in LINK.findall(content) if _is_ours(page)]
        found[heading] = list(dict.fromkeys(page for page in pages if page not in taken))
        taken.update(found[heading])
    return {heading: pages for heading, pages in found.items() if pages}


def rest(text: str, pages: set[str], root: str) -> list[str]:
    """The pages that no link of the text leads to, but for those in the folder of a README."""
    named = {page for linked in sections(text).values() for page in linked}
    folders = {str(PurePosixPath(page).parent) for page in named if _is_folder_page(page)}
    return sorted(
        page
        for page in pages - named - {root}
        if str(PurePosixPath(page).parent) not in folders - {"."}
    )


def trees(text: str, pages: set[str], root: str) -> str:
    """The trees of the index, in the words of MyST."""
    wanted = dict(sections(text))
    others = rest(text, pages, root)
    if others:
        wanted[REST] = others
    return "\n\n".join(tree(linked, caption=heading) for heading, linked in wanted.items())


def tree(pages: list[str], caption: str = "") -> str:
    """One of them."""
    options = [":hidden:", ":titlesonly:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["```{toctree}", *options, "", *pages, "```"])


def _is_ours(page: str) -> bool:
    """Not of another folder, unless it is the page that has a tree of the folder."""
    return not page.startswith("..") and ("/" not in page or _is_folder_page(page))


def _is_folder_page(page: str) -> bool:
    return PurePosixPath(page).name == FOLDER_PAGE


def _add(app: Sphinx, page: str, content: list[str]) -> None:
    """Add its trees to a page that has been read, at the end."""
    pages = set(app.env.found_docs)
    if page == app.config.root_doc:
        content[0] += "\n\n" + trees(content[0], pages, page) + "\n"
    elif _is_folder_page(page):
        folder = PurePosixPath(page).parent
        beside = sorted(
            PurePosixPath(each).name
            for each in pages - {page}
            if PurePosixPath(each).parent == folder
        )
        content[0] += "\n\n" + tree(beside) + "\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
