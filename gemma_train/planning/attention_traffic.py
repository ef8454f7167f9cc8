"""What attention sends along the mesh axis seq in a step, and how even its work is there.

By the design of kernels/attention/along_seq.py: keys and values of global layers are gathered, and
their gradients scattered; of a window, what reaches into neighbours; of queries, one half to the
mirror shard and back. Held to the compiled program by tests/compile/test_table_2.py.
"""

from dataclasses import dataclass

from gemma_train.config import RunConfig
from gemma_train.kernels.attention.splash_tables import is_mirrored, reach


@dataclass(frozen=True, kw_only=True)
class AttentionTraffic:
    """Bytes that a chip sends in a step, and the work of its queries on global layers."""

    gathered_bytes: float  # for the keys and values of global layers
    exchanged_bytes: float  # with neighbours and mirror shards
    everything_bytes: float  # were every layer to gather its keys
    busiest: float  # what the shard with most to look at has, over the mean

    @property
    def sent_bytes(self) -> float:
        return self.gathered_bytes + self.exchanged_bytes


def attention_traffic(config: RunConfig) -> AttentionTraffic:
    """Of a run of `config` on TPUs; all microbatches together."""
    model, mesh = config.model, config.mesh
    length = config.data.sequence_length // mesh.seq
    rows = config.data.batch_rows / (mesh.replica * mesh.data)
    # Forward, again where products are computed again, and back as gradients.
    passes = 2 if config.compute.remat == "none" else 3
    of_a_pass = passes * rows * config.compute.bytes
    keys = of_a_pass * 2 * model.key_value_heads * model.head_dimension
    queries = of_a_pass * model.query_heads * model.head_dimension
    others = (mesh.seq - 1) * length  # positions of other shards
    ahead = min(model.vision.tokens, others) if model.vision and config.row_images else 0
    halo = min(reach(model.window), others) + ahead if model.window else 0
    mirrored = is_mirrored(length, mesh.seq)
    local, far = (model.kinds.count(kind) for kind in ("local", "global"))
    return AttentionTraffic(
        gathered_bytes=far * keys * others,
        exchanged_bytes=local * keys * halo + far * queries * length * mirrored,  # two halves
        everything_bytes=model.layers * keys * others,
        busiest=1.0 if mirrored else 2 - 1 / mesh.seq,
    )
