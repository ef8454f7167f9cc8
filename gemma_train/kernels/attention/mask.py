"""Which key a query may see, as data: positions, segments and images, never a [t, s] array."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax

NOWHERE = -1  # the segment of a key that is none: no query has it
TEXT = -1  # the image of a token that is none's


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """A query sees a key of its own segment that is not later and, in a window, near enough.

    Positions count within the segment; segment 0 is padding. Wherever a window applies, positions
    must be consecutive along a row within a segment, as packing makes them. Where images are given,
    a soft token sees all those of its own image too, later ones and those beyond the window; -1 is
    text. The soft tokens of an image follow each other, at most `image_tokens`, and a window, of
    them.
    """

    query_positions_bt: jax.Array
    query_segments_bt: jax.Array
    key_positions_bs: jax.Array
    key_segments_bs: jax.Array
    query_images_bt: jax.Array | None = None
    key_images_bs: jax.Array | None = None
    window: int | None = field(default=None, metadata={"static": True})  # tokens, itself included
    image_tokens: int = field(default=0, metadata={"static": True})  # of an image, at most

    @classmethod
    def of_itself(
        cls,
        positions_bt: jax.Array,
        segments_bt: jax.Array,
        window: int | None,
        images_bt: jax.Array | None = None,
        image_tokens: int = 0,
    ) -> "AttentionMask":
        """Queries and keys are the same tokens, as in training."""
        return cls(
            query_positions_bt=positions_bt,
            query_segments_bt=segments_bt,
            key_positions_bs=positions_bt,
            key_segments_bs=segments_bt,
            query_images_bt=images_bt,
            key_images_bs=images_bt,
            window=window,
            image_tokens=image_tokens,
        )

    def with_keys(self, brought: Callable[[jax.Array], jax.Array]) -> "AttentionMask":
        """The mask of keys that `brought` selects; where it puts zeros, there is no key."""
        images_bs = self.key_images_bs
        return replace(
            self,
            key_positions_bs=brought(self.key_positions_bs),
            key_segments_bs=brought(self.key_segments_bs - NOWHERE) + NOWHERE,
            key_images_bs=None if images_bs is None else brought(images_bs - TEXT) + TEXT,
        )

    def with_queries(self, brought: Callable[[jax.Array], jax.Array]) -> "AttentionMask":
        """The mask of queries that `brought` selects."""
        images_bt = self.query_images_bt
        return replace(
            self,
            query_positions_bt=brought(self.query_positions_bt),
            query_segments_bt=brought(self.query_segments_bt),
            query_images_bt=None if images_bt is None else brought(images_bt),
        )

    @property
    def looks_ahead(self) -> int:
        """How many later keys a query may see: as many as an image is long, a window at most."""
        if self.query_images_bt is None:
            return 0
        return self.image_tokens if self.window is None else min(self.image_tokens, self.window)


def allowed(mask: AttentionMask) -> jax.Array:
    """[b, t, s] booleans: which of its keys each query of the mask may see."""
    distance_bts = _distance(mask)
    near_bts = distance_bts >= 0
    if mask.window is not None:
        near_bts &= distance_bts < mask.window
    if mask.query_images_bt is not None:
        near_bts |= _same_image(mask)
    return _same_segment(mask) & near_bts


def later_of_image(mask: AttentionMask) -> jax.Array:
    """[b, t, s] booleans: of these, the keys that are seen only because they are of one image."""
    return _same_segment(mask) & _same_image(mask) & (_distance(mask) < 0)


def _distance(mask: AttentionMask) -> jax.Array:
    return mask.query_positions_bt[:, :, None] - mask.key_positions_bs[:, None, :]


def _same_segment(mask: AttentionMask) -> jax.Array:
    return mask.query_segments_bt[:, :, None] == mask.key_segments_bs[:, None, :]


def _same_image(mask: AttentionMask) -> jax.Array:
    queries_bt, keys_bs = mask.query_images_bt, mask.key_images_bs
    assert queries_bt is not None and keys_bs is not None
    return (queries_bt[:, :, None] == keys_bs[:, None, :]) & (queries_bt[:, :, None] >= 0)
