"""The vision encoder: published size, its definition in plain NumPy, and images over a mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.model.siglip import Siglip, encode
from gemma_train.model.sizes import SO400M
from gemma_train.vision import VisionConfig
from tests.tolerances import assert_close

SMALL = VisionConfig(side=24, patch=4, width=16, layers=3, heads=4, hidden=20, tokens=9)


@pytest.fixture(scope="module")
def encoder() -> Siglip:
    """Small, every parameter at random: norms and biases too."""
    model = Siglip(SMALL, nnx.Rngs(0))
    random = np.random.default_rng(0)

    def shaken(leaf):
        return leaf + jnp.asarray(random.normal(size=leaf.shape) * 0.2, leaf.dtype)

    return jax.tree.map(shaken, model)


def pixels(images: int, config: VisionConfig = SMALL) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.float32(random.uniform(-1, 1, (images, config.side, config.side, 3)))


def test_gemmas_has_the_published_number_of_parameters():
    shapes = jax.eval_shape(lambda: Siglip(SO400M, nnx.Rngs(0)))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == 416_866_032
    assert (SO400M.patches, SO400M.grid) == (4096, 64)
    pixels = jax.ShapeDtypeStruct((2, 896, 896, 3), jnp.float32)
    found = jax.eval_shape(lambda encoder, pixels: encoder(pixels), shapes, pixels)
    assert found.shape == (2, 256, 1152)


def plain(encoder: Siglip, pixels: np.ndarray) -> np.ndarray:
    """One image, in float64, patch by patch and head by head."""
    p = {path: np.float64(leaf) for path, leaf in by_path(encoder).items()}
    c, side = encoder.config, encoder.config.patch

    def norm(x, name, layer=...):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}/scale"][layer] + p[f"{name}/bias"][layer]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = np.stack(
        [
            np.einsum(
                "yxc,yxce->e",
                pixels[row * side : (row + 1) * side, column * side : (column + 1) * side],
                p["patches/kernel"],
            )
            + p["patches/bias"]
            for row in range(c.grid)
            for column in range(c.grid)
        ]
    )
    x += p["positions"]
    for layer in range(c.layers):
        normed = norm(x, "layers/attention_norm", layer)
        heads = []
        for head in range(c.heads):
            query, key, value = (
                normed @ p[f"layers/{name}/kernel"][layer][:, head]
                + p[f"layers/{name}/bias"][layer][head]
                for name in ("query", "key", "value")
            )
            scores = np.exp(query @ key.T / np.sqrt(c.width // c.heads))
            heads.append(scores / scores.sum(-1, keepdims=True) @ value)
        output = p["layers/output/kernel"][layer].reshape(c.width, c.width)
        x = x + np.concatenate(heads, -1) @ output + p["layers/output/bias"][layer]
        hidden = norm(x, "layers/feed_forward_norm", layer) @ p["layers/up/kernel"][layer]
        hidden = gelu(hidden + p["layers/up/bias"][layer])
        x = x + hidden @ p["layers/down/kernel"][layer] + p["layers/down/bias"][layer]
    x = norm(x, "final_norm").reshape(c.grid, c.grid, c.width)
    square = c.grid // 3
    return np.stack(
        [
            x[row : row + square, column : column + square].mean((0, 1))
            for row in range(0, c.grid, square)
            for column in range(0, c.grid, square)
        ]
    )


def test_it_is_what_it_is_defined_to_be(encoder):
    images = pixels(2)
    expected = np.stack([plain(encoder, image) for image in images])
    assert_close(encoder(images), expected, "deep fp32")


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_on_any_mesh_images_are_encoded_alike(mesh, encoder, mesh_of):
    images = pixels(5)  # which eight devices do not divide
    expected = encoder(images)
    with mesh_of(*mesh):
        found = encode(encoder, images)
    assert_close(found, expected, "deep fp32")


def test_memory_does_not_grow_with_the_images(mesh_of, largest_arrays):
    config = replace(SMALL, side=512, layers=1, tokens=16)  # scores of 4 GiB an image
    model = jax.eval_shape(lambda: Siglip(config, nnx.Rngs(0)))

    def largest(images: int) -> int:
        with mesh_of():
            given = jax.ShapeDtypeStruct((images, 512, 512, 3), jnp.float32)
            program = encode.lower(model, given).compile().as_text()
        return max(np.prod(shape) for shape in largest_arrays(program))

    assert largest(6) == largest(1) == config.heads * config.patches**2


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("patch", 5, "vision.patch is 5: it must divide vision.side, 24"),
        ("heads", 3, "vision.heads is 3: it must divide vision.width, 16"),
        ("tokens", 8, "vision.tokens is 8"),
        ("tokens", 16, "vision.tokens is 16"),
        ("layers", 0, "vision.layers is 0: it must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(field, value, told):
    with pytest.raises(UserError, match=told):
        replace(SMALL, **{field: value})
