"""Native code's chatter kept from the screen.

libtpu writes warnings to descriptor 2 about a TPU machine that this one is not, past any logging
setting.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


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
