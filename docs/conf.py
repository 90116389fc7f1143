"""How Sphinx makes the site of docs/: `python -m sphinx -W --keep-going -n docs SOMEWHERE`.

The pages are Markdown that can be read on a forge as it is. What only the site has (the tree of
pages, what is generated from the source) is added while a page is read, by docs/extensions.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vuproc import __version__  # noqa: E402  (the checkout's)

project = "vuproc"
copyright = "the authors of vuproc; Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "docs.extensions.contents",
    "docs.extensions.generated",
    "docs.extensions.stubs",
]
root_doc = "index"
exclude_patterns = ["extensions"]

html_theme = "furo"
html_title = f"vuproc {__version__}"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": False}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

smartquotes = False
"""Options begin with two dashes, and stay so."""
highlight_language = "none"
"""Blocks without a language are pictures, and lines of a terminal."""

# Annotations name other libraries, and parts of vuproc that have no page of their own.
_LIBRARIES = "collections|ctypes|enum|logging|msgspec|os|pathlib|socket|types|typing|uuid"
_INNER = "vuproc.(program|shared.T|outcome.T|spec|testing|vhost_user)"
_FROM_STUBS = "AbstractEventLoop|Buffer|HasFileno|NativeDevice"
_NO_NAMES = r"dict\[.*|typing.Annotated\[.*"
nitpick_ignore_regex = [("py:.*", rf"(({_LIBRARIES}|{_INNER})(\..*)?|{_FROM_STUBS}|{_NO_NAMES})")]
