"""Which key a query may see, as data: positions, segments and images, never a [t, s] array."""

from dataclasses import dataclass, field

import jax


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


def allowed(mask: AttentionMask) -> jax.Array:
    """[b, t, s] booleans: which of its keys each query of the mask may see."""
    distance_bts = mask.query_positions_bt[:, :, None] - mask.key_positions_bs[:, None, :]
    same_segment_bts = mask.query_segments_bt[:, :, None] == mask.key_segments_bs[:, None, :]
    near_bts = distance_bts >= 0
    if mask.window is not None:
        near_bts &= distance_bts < mask.window
    if mask.query_images_bt is not None and mask.key_images_bs is not None:
        queries_bt1, keys_b1s = mask.query_images_bt[:, :, None], mask.key_images_bs[:, None, :]
        near_bts |= (queries_bt1 == keys_b1s) & (queries_bt1 >= 0)
    return same_segment_bts & near_bts
