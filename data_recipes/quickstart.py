"""Real text that any machine has, without network: enough to watch a small model learn.

Python's own library is always there; manual pages and the documentation of installed packages
are taken where they exist. About 26 MB on a common Linux machine, 17 MB with nothing but Python.
"""

import glob
import os
import sysconfig

from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.tokenizer.training import TokenizerConfig

FOLDER = "data/quickstart"
LIBRARY = sysconfig.get_path("stdlib")
PACKAGES = sysconfig.get_path("purelib")
MANUALS = "/usr/share/man"
LANGUAGES = ("de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt_BR", "ru", "sv", "uk", "zh_CN")
NOT_LIBRARY = ("site-packages", "dist-packages", "test")


def library_patterns() -> tuple[str, ...]:
    """The standard library's modules and packages, without what others installed beside it."""
    folders = sorted(
        entry.name
        for entry in os.scandir(LIBRARY)
        if entry.is_dir() and entry.name not in NOT_LIBRARY
    )
    return (f"{LIBRARY}/*.py", *(f"{LIBRARY}/{folder}/**/*.py" for folder in folders))


def source(name: str, *patterns: str, licence: str, megabytes: float) -> list[TextSource]:
    """A source of the patterns that match something on this machine, or none."""
    present = tuple(each for each in patterns if any(glob.iglob(each, recursive=True)))
    return [
        TextSource(
            name=name,
            files=present,
            licence=licence,
            held_out_fraction=0.03,
            minimum_characters=300,
            maximum_bytes=int(megabytes * 1e6),
        )
        for _ in present[:1]
    ]


recipe = Recipe(
    name="quickstart",
    folder=FOLDER,
    tokenizer=TokenizerConfig(path=f"{FOLDER}/tokenizer.model", vocabulary=4_096),
    sources=(
        *source("library", *library_patterns(), licence="PSF-2.0", megabytes=12),
        *source("library tests", f"{LIBRARY}/test/*.py", licence="PSF-2.0", megabytes=5),
        *source(
            "package documentation",
            *(f"{PACKAGES}/**/*.{suffix}" for suffix in ("md", "rst", "txt")),
            licence="of each package, see its metadata",
            megabytes=1.5,
        ),
        *source(
            "manuals",
            *(f"{MANUALS}/man{section}/*" for section in (1, 5, 7, 8)),
            licence="of each page, see its head: GPL, BSD, MIT and others",
            megabytes=3,
        ),
        *(
            one
            for language in LANGUAGES
            for one in source(
                f"manuals {language}",
                f"{MANUALS}/{language}/man?/*",
                licence="of each page, see its head: GPL, BSD, MIT and others",
                megabytes=0.4,
            )
        ),
    ),
)
