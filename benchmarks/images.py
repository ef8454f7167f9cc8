"""What images cost a step, and what their embeddings cost to keep and to read.

    python -m benchmarks.images [--rounds 5]

Shape: that of cpu_step.py, one image of 64 soft tokens a row, through a SigLIP of 6 layers and
width 192. Three forms of one step take turns in one process, so that a noisy machine slows all:
text alone; the same rows with embeddings made ahead; and the encoder in front of every step. What
Gemma 3's own encoder would cost is counted, not timed. Embeddings of Gemma's size are written, and
read at random.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from benchmarks.cpu_step import CONFIG, LENGTH, ROWS, timed
from gemma_train.config import ImageRows, RunConfig, VisionConfig
from gemma_train.data.example import Batch
from gemma_train.data.images.store import EmbeddingStore, Head, image_key, write_head, write_shard
from gemma_train.mesh import make_mesh, start_runtime
from gemma_train.model.flops import training_flops_per_token
from gemma_train.model.siglip import Siglip, encode
from gemma_train.model.sizes import GEMMA3_4B, GEMMA3_27B, SO400M
from gemma_train.placement import place
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step

VISION = VisionConfig(side=224, patch=14, width=192, layers=6, heads=3, hidden=768, tokens=64)
STORED, SHARD = 512, 64
SECONDS = 3.0


def text_batch() -> Batch:
    tokens_bt = np.random.default_rng(0).integers(0, CONFIG.model.vocabulary, (ROWS, LENGTH))
    return Batch(
        tokens_bt=np.int32(tokens_bt),
        targets_bt=np.int32(np.roll(tokens_bt, -1, axis=1)),
        positions_bt=np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        segments_bt=np.ones((ROWS, LENGTH), np.int32),
        weights_bt=np.ones((ROWS, LENGTH), np.float32),
    )


def with_images(batch: Batch, images_bipe: np.ndarray) -> Batch:
    soft_bt = np.full_like(batch.tokens_bt, -1)
    soft_bt[:, 100 : 100 + VISION.tokens] = np.arange(VISION.tokens)
    return replace(batch, soft_bt=soft_bt, images_bipe=images_bipe)


def step_of(config: RunConfig, batch: Batch) -> Callable[[], jax.Array]:
    """A step of the trainer's own; each call is one."""
    state, step = [initial_state(config)], make_step(config)
    placed = place(batch, jax.sharding.get_mesh(), ROWS)

    def call() -> jax.Array:
        state[0], scalars = step(state[0], placed)
        return scalars["loss"]

    call().block_until_ready()
    return call


def steps() -> dict[str, Callable[[], jax.Array]]:
    """The three forms, each on its own state."""
    text = text_batch()
    seeing = replace(
        CONFIG,
        model=replace(CONFIG.model, vision=VISION),
        data=replace(CONFIG.data, images=ImageRows(store="unused", per_row=1)),
    )
    random = np.random.default_rng(1)
    shape = (ROWS, VISION.side, VISION.side, 3)
    pixels = random.uniform(-1, 1, shape).astype(np.float32)
    encoder = Siglip(VISION, nnx.Rngs(0))
    embedded = np.asarray(encode(encoder, pixels))[:, None].astype(ml_dtypes.bfloat16)
    mixed = step_of(seeing, with_images(text, embedded))

    def encoding() -> jax.Array:
        encode(encoder, pixels).block_until_ready()
        return mixed()

    return {
        "text alone": step_of(CONFIG, text),
        "embeddings made ahead": mixed,
        "encoder in every step": encoding,
    }


def encoder_flops(vision: VisionConfig) -> float:
    """Of one image, forward: two a weight of a matrix and patch, and attention over all pairs."""
    width, patches = vision.width, vision.patches
    weights = vision.layers * (4 * width**2 + 2 * width * vision.hidden)
    weights += 3 * vision.patch**2 * width
    return 2.0 * patches * weights + 4.0 * vision.layers * patches**2 * width


def print_steps(rounds: int) -> None:
    forms = steps()
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, call in forms.items():
            found[name].append(timed(call))
    text = found["text alone"]
    print(f"{ROWS} rows of {LENGTH}, an image of {VISION.tokens} soft tokens each; {rounds} rounds")
    print(f"{'':24}{'/ text, best':>14}{'median of ratios':>18}")
    for name, seconds in found.items():
        ratios = [one / other for one, other in zip(seconds, text, strict=True)]
        best = min(seconds) / min(text)
        print(f"{name:24}{best:14.3f}{statistics.median(ratios):18.3f}")


def print_counted() -> None:
    image = encoder_flops(SO400M)
    print(
        f"\nGemma 3's encoder, counted: {image / 1e12:.2f} TFLOP an image, as much as training on"
    )
    for name, model in (("4B", GEMMA3_4B), ("27B", GEMMA3_27B)):
        tokens = image / training_flops_per_token(model, 32_768)
        print(f"    on {tokens:4,.0f} tokens of {name}; an image takes {SO400M.tokens} of them")


def print_store() -> None:
    random = np.random.default_rng(0)
    head = Head(
        encoder_sha256="0" * 64,
        encoder="none",
        side=SO400M.side,
        tokens=SO400M.tokens,
        width=SO400M.width,
    )
    keys = [image_key(b"%d" % number) for number in range(STORED)]
    with tempfile.TemporaryDirectory() as folder:
        write_head(folder, head)
        shape = (SHARD, head.tokens, head.width)
        embeddings = random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        for number, first in enumerate(range(0, STORED, SHARD)):
            write_shard(folder, number, head, keys[first : first + SHARD], embeddings)
        store, reads, copies = EmbeddingStore(folder), 0, 0
        into = np.empty(embeddings.shape[1:], embeddings.dtype)
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            into[:] = store.read(keys[random.integers(STORED)])
            reads += 1
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            into[:] = embeddings[random.integers(SHARD)]
            copies += 1
    on_disk = head.record_bytes + 36
    print(f"\nA store: {on_disk:,} B an image, uncompressed; {reads / SECONDS:,.0f} reads a second")
    print(f"with their checksums, from the page cache: {reads / copies:.2f} of a bare NumPy copy's")


def main() -> None:
    parser = argparse.ArgumentParser(description="What images cost.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each form of the step")
    arguments = parser.parse_args()
    start_runtime(CONFIG.mesh)
    with jax.set_mesh(make_mesh(CONFIG.mesh)):
        print_steps(arguments.rounds)
    print_counted()
    print_store()


if __name__ == "__main__":
    main()
