"""Real text that any machine has, without network: enough to watch a small model learn.

Python's own library is always there; translated manual pages and the documentation of installed packages
are taken where they exist. About 20 MB on a common Linux machine, 10 to 20 MB elsewhere.
"""

import glob
import os
import sysconfig

from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.tokenizer.training import TokenizerConfig

LIBRARY = sysconfig.get_path("stdlib")
PACKAGES = sysconfig.get_path("purelib")
FOLDER = "data/quickstart"


def present(*patterns: str) -> tuple[str, ...]:
    """Those of the patterns that match a file on this machine."""
    return tuple(pattern for pattern in patterns if any(glob.iglob(pattern, recursive=True)))


library_packages = [
    f"{entry.path}/**/*.py"
    for entry in sorted(os.scandir(LIBRARY), key=lambda entry: entry.name)
    if entry.is_dir() and entry.name not in ("site-packages", "dist-packages", "test")
]
sources = [
    TextSource(
        name="manuals-translated",
        files=present(*(f"/usr/share/man/{language}/man?/*.gz" for language in ("??", "??_??"))),
        licence="per page, see its head: GPL, BSD, MIT and others",
        minimum_characters=200,
        maximum_bytes=6_000_000,
    )
    if present("/usr/share/man/??/man?/*.gz")
    else None,
]
recipe = Recipe(
    name="quickstart",
    folder=FOLDER,
    tokenizer=TokenizerConfig(path=f"{FOLDER}/tokenizer.model", vocabulary=4_096),
    sources=(),
)
