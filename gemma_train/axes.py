"""The alphabet: one letter an axis, the same in suffixes, einsums, declarations and shardings.

`x_btd` has axes b, t and d; `weight("dnh")` takes shape, fan-in and split from its letters;
`activation("btd")` is the sharding of such an array. `tests/test_axes.py` holds every einsum of the
package to the names of its operands.
"""

from jax.sharding import PartitionSpec

LETTERS = {
    "b": "sequences (rows of a batch)",
    "t": "query positions",
    "s": "key positions",
    "d": "model width",
    "f": "feed-forward hidden",
    "v": "vocabulary",
    "n": "query heads",
    "k": "key/value heads",
    "g": "query heads per key/value head",
    "h": "head dimension",
    "l": "layers (scanned repetitions of the pattern)",
    "i": "images",
    "p": "image patches or soft tokens",
    "e": "vision width",
    "c": "chunk or block of positions",
    "q": "distillation candidates",
    "j": "blocks of the vocabulary",
    "r": "rows within a block of the vocabulary",
    "y": "rows of pixels in a patch",
    "x": "columns of pixels in a patch",
    "o": "colours of a pixel",
}

# The mesh: `data` is one number in the config and two axes here, so that every collective runs over
# one axis at a time (a reduction over a whole pod in one hop compiles to a full all-reduce).
MESH_AXES = ("replica", "data_major", "data_minor", "seq")
# Parameters, gradients and moments are split over these and equal over `replica`.
SPLIT_AXES = ("data_major", "data_minor", "seq")
# The whole activation rule.
ACTIVATIONS = {"b": ("replica", "data_major", "data_minor"), "t": ("seq",)}


def activation(letters: str) -> PartitionSpec:
    """The sharding of an activation with these axes, as in `activation("btd")`."""
    return PartitionSpec(*(ACTIVATIONS.get(letter) for letter in letters))
