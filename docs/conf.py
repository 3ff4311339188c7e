"""The documentation as a site: `make docs`."""

from __future__ import annotations

from storescp import _core

project = "storescp"
version = release = _core.__version__
extensions = ["myst_parser"]
exclude_patterns = ["parts", "_build"]
html_theme = "furo"
html_title = f"storescp {version}"
# Everything comes from the site itself, and the sources are beside it anyway.
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
myst_heading_anchors = 3
# Links out of the folder name files of the project.
suppress_warnings = ["myst.xref_missing"]
