"""Local attention against attention to all pairs, as rows grow: `python -m benchmarks.attention`.

One layer of Gemma 3's kind (a window of 1,024; 1 query and 1 key head of 64, so that all pairs of
32,768 tokens fit a machine), forward and backward, float32, on the devices that jax finds. The two
forms take turns; each figure is the best of --rounds. By count a blocked query has 1,536 scores
whatever the length: a block of 512 queries sees itself and the two before it.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from gemma_train.axes import activation
from gemma_train.kernels.attention.attention import Implementation, attention
from gemma_train.kernels.attention.blocked import BLOCK
from gemma_train.kernels.attention.mask import AttentionMask
from gemma_train.mesh import MeshConfig, make_mesh, start_runtime

WINDOW, HEAD = 1024, 64
SCORES = WINDOW + BLOCK  # of a query, blocked
LENGTHS = (2048, 4096, 8192, 16_384, 32_768)


def layer(length: int, implementation: Implementation) -> Callable[[], None]:
    """A compiled call of the layer and its gradient on one row of a single document."""
    random = np.random.default_rng(0)

    def placed(x: np.ndarray) -> jax.Array:
        return reshard(jnp.asarray(x), activation("btnh"[: x.ndim]))

    drawn = (np.float32(random.normal(size=(1, length, 1, HEAD))) for _ in range(3))
    arrays = [placed(x) for x in drawn]
    places_bt = placed(np.arange(length, dtype=np.int32)[None])
    segments_bt = placed(np.ones((1, length), np.int32))

    def loss(query, key, value):
        mask = AttentionMask.of_itself(places_bt, segments_bt, WINDOW)
        return jnp.sum(attention(query, key, value, mask, implementation=implementation) ** 2)

    call = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return lambda: jax.block_until_ready(call(*arrays))


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="tokens of the last row")
    parsed = parser.parse_args()
    start_runtime(MeshConfig())
    print("tokens | blocked, ms | per token against the first | all pairs, ms | ratio | by count")
    first = None
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for length in [one for one in LENGTHS if one <= parsed.longest]:
            forms = [layer(length, "blocked"), layer(length, "reference")]
            for form in forms:
                form()
            times = [[seconds(form) for form in forms] for _ in range(parsed.rounds)]
            near, pairs = (min(one) for one in zip(*times, strict=True))
            first = first or near / length
            print(
                f"{length:6,} | {1e3 * near:11.1f} | {near / length / first:26.2f}x | "
                f"{1e3 * pairs:13.1f} | {pairs / near:4.1f}x | {length / SCORES:4.1f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
