"""Sphinx settings: Markdown pages in docs/, docstrings of the public names."""

from __future__ import annotations

import runnel
from runnel.node.manifest import docs_table

project = "runnel"
author = "the runnel authors"
copyright = "the runnel authors, Apache-2.0"
version = release = runnel.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = False
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_substitutions = {"settings": docs_table()}  # from the same object that reads run.toml
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links that leave docs/, such as ../README.md

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"runnel {release}"
