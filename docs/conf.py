"""Configuration of the documentation site: `make docs`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the package, and docstrings.py
# The kernels of notebooks import the checkout, too, and compute on CPUs.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import sqs_jax  # noqa: E402

project = "sqs_jax"
author = "the authors of sqs_jax"
copyright = "2026, the authors of sqs_jax. Apache-2.0"
release = version = sqs_jax.__version__

extensions = [
    "docstrings",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # pages of the repository may begin at any level

# A name in single backticks is a link where the name is documented, else plain code.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    # Other projects' types: the build is offline, so that there are no inventories to link to.
    ("py:class", r"sqs_jax\.artifact\.size_report\.\w+"),  # entries of a SizeReport
    ("py:.*", r"(collections|contextlib|enum|jax|numpy|np|flax|nnx|nn|os|rich|typing)\..*"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the entries of Args say what a type cannot: shape, unit, range
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # a list: dataclass fields are no entries of their own
napoleon_attr_annotations = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # a change of the library changes the output
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "furo"
html_title = f"sqs_jax {release}"
html_copy_source = False
