"""Which key a query may see, as data: positions and segments, never a [t, s] array in memory."""

from dataclasses import dataclass, field

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """A query sees a key of its own segment that is not later and, in a window, near enough.

    Positions count within the segment; segment 0 is padding. Wherever a window applies, positions
    must be consecutive along a row within a segment, as packing makes them.
    """

    query_positions_bt: jax.Array
    query_segments_bt: jax.Array
    key_positions_bs: jax.Array
    key_segments_bs: jax.Array
    window: int | None = field(default=None, metadata={"static": True})  # tokens, itself included

    @classmethod
    def of_itself(
        cls, positions_bt: jax.Array, segments_bt: jax.Array, window: int | None
    ) -> "AttentionMask":
        """Queries and keys are the same tokens, as in training."""
        return cls(
            query_positions_bt=positions_bt,
            query_segments_bt=segments_bt,
            key_positions_bs=positions_bt,
            key_segments_bs=segments_bt,
            window=window,
        )


def allowed(
    query_positions: jax.Array,
    query_segments: jax.Array,
    key_positions: jax.Array,
    key_segments: jax.Array,
    window: int | None,
) -> jax.Array:
    """[..., t, s] booleans from [..., t] queries and [..., s] keys."""
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    same_segment = query_segments[..., :, None] == key_segments[..., None, :]
    seen = same_segment & (distance >= 0)
    return seen if window is None else seen & (distance < window)
