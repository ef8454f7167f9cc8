"""With what a run is computed: another program may give other last bits."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
_COMPUTE = ("gemma_train", "jax", "jaxlib", "flax", "optax")


@cache
def versions() -> dict[str, str]:
    """The version of each package that computes, and the SHA-256 of this one's own sources."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    return {**{name: version(name) for name in _COMPUTE}, "sources": digest.hexdigest()[:12]}


def changes_since(there: dict[str, str]) -> str:
    """How what computes here differs from there, in words; "" where it does not."""
    return ", ".join(
        f"{name} {there.get(name, 'unknown')} then, {here} now"
        for name, here in versions().items()
        if there.get(name) != here
    )
