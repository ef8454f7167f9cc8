"""What each token's own loss is, and whether it is the likeliest: for evaluation, without logits.

`loss.py` gives sums over tokens; figures by position need the tokens apart. The same chunks, the
same split of the table over devices, and no gradient.
"""

import jax
from jax.sharding import PartitionSpec

from gemma_train.axes import activation
from gemma_train.kernels.vocabulary.chunk import scored_chunk
from gemma_train.kernels.vocabulary.split import chunks, first_row, gathered, own, whole_rows
from gemma_train.kernels.vocabulary.terms import LossTerms
from gemma_train.zero3 import axes_of


def token_scores(
    states_btd: jax.Array, table_vd: jax.Array, targets_bt: jax.Array, terms: LossTerms
) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy in nats, float32; whether no token is likelier), both [b, t].

    Of the terms, the soft cap and the chunk count. `table_vd` comes as it is stored, split by
    `zero3.split`; matmuls run in the states' dtype.
    """
    rows, columns = axes_of(table_vd)

    def on_one_shard(
        states_btd: jax.Array, table_vd: jax.Array, targets_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        table_vd = whole_rows(table_vd.astype(states_btd.dtype), columns)
        first = first_row(table_vd, rows)

        def scored(one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            states_cd, targets_c = (gathered(x, rows) for x in one)
            loss_c, likeliest_c = scored_chunk(states_cd, table_vd, targets_c - first, terms, rows)
            return own(loss_c, rows), own(likeliest_c, rows)

        def in_place(x: jax.Array) -> jax.Array:
            return x.reshape(-1)[: targets_bt.size].reshape(targets_bt.shape)

        loss, likeliest = jax.lax.map(scored, chunks((states_btd, targets_bt), terms.chunk))
        return in_place(loss), in_place(likeliest)

    table_spec: PartitionSpec = jax.typeof(table_vd).sharding.spec
    return jax.shard_map(
        on_one_shard,
        in_specs=(activation("btd"), table_spec, activation("bt")),
        out_specs=(activation("bt"), activation("bt")),
        check_vma=False,
    )(states_btd, table_vd, targets_bt)
