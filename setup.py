"""The description for package indexes: README.md without its pictures and its links into the repository.

All else is in setup.cfg.
"""

import re
from pathlib import Path

from setuptools import setup

PICTURE = r"!\[[^]]*\]\([^)]*\)\n\n"
RELATIVE_LINK = r"\[([^]]+)\]\((?!https?:)[^)]*\)"

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(RELATIVE_LINK, r"\1", re.sub(PICTURE, "", readme)),
    long_description_content_type="text/markdown",
)
