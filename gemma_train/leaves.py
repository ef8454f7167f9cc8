"""The leaves of a tree (a model, a state, a gradient) by readable path."""

from typing import Any

import jax


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves by path, such as 'pattern/0/attention/query'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def from_paths(leaves: dict[str, Any], like: Any) -> Any:
    """The tree shaped as `like` with these leaves: the inverse of `by_path`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[_name(path)], like)


def _name(path: tuple[Any, ...]) -> str:
    """The path in words; a flax parameter's own last word, 'value', is left out."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
