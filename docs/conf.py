"""How Sphinx makes the site of these pages: ``make docs`` writes it to ``build/docs``. They read as well where they lie."""

import re
from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "inturn"
author = "inturn contributors"
release = version_of("inturn")
html_title = f"inturn {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = []

smartquotes = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
"""Links to headings are checked as those to pages are."""

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "undoc-members": True, "exclude-members": "connections"}

suppress_warnings = ["ref.python"]
"""A builtin such as ``type`` is also the name of attributes, and Sphinx asks which one is meant."""

default_role = "code"
"""What stands between single backticks in help texts and docstrings is code."""


def _as_plain_text(app: Sphinx, context: object, lines: list[str]) -> None:
    """The help of a command is read as reStructuredText, where an asterisk and a last underscore mean something."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"\*|_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "`".join(parts)


def _as_sentence(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in a property's first line for its type."""
    if what in ("attribute", "property"):
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _as_sentence, priority=1)
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", _as_plain_text)
