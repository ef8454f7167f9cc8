"""Native code's chatter kept from the screen.

libtpu writes warnings to descriptor 2 about a TPU machine that this one is not, past any logging
setting, and libtiff a line for every flaw of a file.
"""

import contextlib
import ctypes
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@contextlib.contextmanager
def silenced_standard_error() -> Iterator[None]:
    """Hold back what is written to descriptor 2, and show it after all if the body fails."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            kept.seek(0)
            os.write(screen, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)


@cache
def silence_libtiff() -> None:
    """Let the libtiff that came with Pillow say nothing, for good; another one keeps talking."""
    found = importlib.util.find_spec("PIL")
    if found is None or found.origin is None:
        return
    package = Path(found.origin).parent
    for folder in (package.parent / "pillow.libs", package / ".dylibs"):
        for file in folder.glob("libtiff*"):
            library = ctypes.CDLL(os.fspath(file))
            for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                setter.argtypes = [ctypes.c_void_p]
                setter(None)
