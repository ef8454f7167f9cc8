"""The model of a step's memory beside the TPU compiler's peak: `python benchmarks/memory_model.py`.

Six layers of Gemma 3 1B on sixteen v5e, as they are and with changes that a plan proposes for a
step that does not fit. Needs libtpu, no TPU; about ten minutes on two cores.
"""

import jax

from gemma_train.config import changed, load
from gemma_train.planning.compiled import TooLarge
from gemma_train.planning.fitting import Fields, as_flags
from gemma_train.planning.memory import activation_bytes, state_bytes
from gemma_train.planning.plan import compile_for
from gemma_train.planning.slices import Slices

SHALLOW: Fields = {
    "compute.remat": "full",
    "loss.chunk": 1024,
    "model.layers": 6,
    "model.context": 1024,
    "data.sequence_length": 1024,
    "data.batch_rows": 64,
    "mesh.replica": 1,
    "mesh.data": 16,
    "mesh.seq": 1,
    "mesh.topology": "v5e:4x4",
    "mesh.slices": 1,
}
CHANGES: tuple[Fields, ...] = (
    {},
    {"loss.chunk": 256},
    {"accumulation": 4},
    {"data.batch_rows": 256},
    {"data.batch_rows": 256, "compute.remat": "none"},
    {"mesh.data": 4, "mesh.seq": 4},
)
GB = 10**9


def main() -> None:
    jax.config.update("jax_platforms", "cpu")  # with libtpu here, jax would look for a TPU
    base = changed(load("configs/gemma3_1b.py"), SHALLOW)
    print(f"{'change':48} {'counted':>8} {'compiled':>9} {'ratio':>6}")
    for change in CHANGES:
        config = changed(base, change)
        counted = state_bytes(config).total + activation_bytes(config).peak
        found = compile_for(config, Slices.named(config.mesh.topology, config.mesh.slices))
        peak = found.needed_bytes if isinstance(found, TooLarge) else found.peak_bytes
        name = as_flags(change) or "as it is"
        print(f"{name:48} {counted / GB:8.2f} {peak / GB:9.2f} {counted / peak:6.2f}", flush=True)


if __name__ == "__main__":
    main()
