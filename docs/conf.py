"""Sphinx's settings. The source folder is the repository, so that a link in Markdown means here what it means on its own.

`make docs` runs `sphinx-build -c docs . docs/_build`. Neither the build nor a page needs a network.
"""

import re

import rsfast

project = "rsfast"
version = release = rsfast.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx-mathjax-offline",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_argparse_cli",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]

root_doc = "docs/index"
include_patterns = ["docs/**", "*.md", "benchmarks/results/*.md"]
exclude_patterns = ["README.md", "docs/_build", ".*", "build", "dist", "demo"]
toc_object_entries_show_parents = "hide"
default_role = "py:obj"  # `certify` in a docstring is a link to it

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings state types, and more
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"paper\.py$",
    "backreferences_dir": "docs/gallery/backreferences",
    "doc_module": ("rsfast",),
    "copyfile_regex": r"index\.rst",  # examples/index.rst has the order
    "parallel": 2,
    "abort_on_example_error": True,
    "image_srcset": ["2x"],
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "rsfast"
html_extra_path = ["_root"]
html_static_path = ["_static"]
html_css_files = ["rsfast.css"]
html_context = {"default_mode": "auto"}
html_copy_source = False
html_theme_options = {
    "footer_start": [],
    "footer_end": [],
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
}


def show_examples(_app, _docname, source):
    """Let a link to the file of an example lead to its page in the gallery, where its figure is."""
    source[0] = re.sub(r"\]\((\.\./)*examples/(?!paper)(\w+)\.py\)", r"](/docs/gallery/\2.rst)", source[0])


def setup(app):
    app.connect("source-read", show_examples)
