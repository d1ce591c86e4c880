"""The settings of Sphinx for the documentation site."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
# The examples are not installed, and Sphinx does not look for modules where it was started.
sys.path.insert(0, str(HERE.parents[1]))

from examples.site import pages  # noqa: E402

project = "gradtx"
author = "The gradtx authors"
copyright = "2026, the gradtx authors"
version = release = version_of("gradtx")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "examples.site.pages",
]
exclude_patterns = ["**.ipynb_checkpoints"]
# A name in single backticks, as the docstrings have it, is a link if there is a page of that name.
default_role = "py:obj"
add_module_names = False
toc_object_entries = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_in_temp = True
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# The guides run without the user's settings of IPython, and tell of errors only.
os.environ["IPYTHONDIR"] = folder = tempfile.mkdtemp(prefix="ipython-")
atexit.register(shutil.rmtree, folder, ignore_errors=True)
profile = Path(folder) / "profile_default"
profile.mkdir()
(profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n")
logging.getLogger("traitlets").setLevel(logging.WARNING)

autodoc_type_aliases = pages.aliases()
autodoc_preserve_defaults = True
autodoc_use_type_comments = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "returns_style"), ("State", "returns_style")]
python_maximum_signature_line_length = 80
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"gradtx {version}"
html_static_path = ["static"]
html_css_files = ["gradtx.css"]
html_show_sphinx = False

pages.write(HERE / "reference")
pages.show_experiments(HERE / "gallery")
