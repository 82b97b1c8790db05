"""Settings of the documentation, which `scripts/docs` builds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from probing.provenance import __version__

project = "probing"
release = version = __version__
copyright = "the authors of probing"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "_reference"]
exclude_patterns = ["_build", "jupyter_execute", "examples/README.md"]
default_role = "code"  # in docstrings `this` is code
needs_sphinx = "8.2"

# Text: headings are anchors, so that [words](page.md#a-heading) works here and in any viewer of Markdown.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Notebooks (docs/examples): run once, kept until they change; an error ends the build.
nb_execution_mode = os.environ.get("PROBING_DOCS_EXECUTE", "cache")
nb_execution_cache_path = str(Path(__file__).parent / "_build" / "jupyter_cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress and warnings of libraries

# The API.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Class attributes", "Attributes")]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# Pages: nothing is loaded from elsewhere.
html_theme = "pydata_sphinx_theme"
html_title = f"probing {version}"
html_static_path = ["_static"]
html_css_files = ["probing.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "logo": {"text": "probing"},
    "navbar_align": "left",
    "navbar_center": ["navbar-nav"],
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 6,
    "show_nav_level": 1,
    "navigation_depth": 3,
    "show_toc_level": 2,
    "back_to_top_button": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
