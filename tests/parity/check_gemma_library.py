"""The gemma library and gemma_train side by side: each reads what the other wrote and computes it.

    python3.12 -m venv /tmp/gemma
    /tmp/gemma/bin/pip install --constraint constraints.txt --editable '.[develop]'
    /tmp/gemma/bin/pip install --no-deps gemma==4.0.1 kauldron==1.4.4
    /tmp/gemma/bin/pip install dialog 'etils[edc,enp,epath,epy,etree]' jaxtyping altair chex clu \
        graphviz immutabledict lark mediapy ml_collections opencv-python-headless pandas \
        scikit-image scikit-learn tabulate tensorboard tensorflow-cpu tensorflow_datasets typeguard
    JAX_PLATFORMS=cpu PYTHONPATH=. /tmp/gemma/bin/python tests/parity/check_gemma_library.py

`pip install gemma` would draw in xmanager as well, for which pip may not find versions that agree;
nothing here needs it. The models are random and small, some of the library's own architectures,
some of transformers' (the fixtures). Ends with an AssertionError where anything differs.
"""

import dataclasses
import importlib.metadata
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from gemma import gm
from gemma.gm.ckpts import _checkpoint as layouts
from gemma.gm.nn.config import AttentionType, TransformerConfig
from gemma.gm.nn.vision._vision import VisionExit
from gemma.gm.nn.vision._vision_utils import ViTModel

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import load_model, open_weights
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.names import parameters
from gemma_train.conversion.tensors import BFLOAT16, Tensor
from gemma_train.model import Gemma, GemmaConfig, sizes
from gemma_train.vision import VisionConfig
from tests.conversion.test_names import published
from tests.tolerances import TOLERANCES, assert_close

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = {
    "GEMMA2_2B": gm.nn.Gemma2_2B,
    "GEMMA2_9B": gm.nn.Gemma2_9B,
    "GEMMA2_27B": gm.nn.Gemma2_27B,
    "GEMMA3_270M": gm.nn.Gemma3_270M,
    "GEMMA3_1B": gm.nn.Gemma3_1B,
    "GEMMA3_4B": gm.nn.Gemma3_4B,
    "GEMMA3_12B": gm.nn.Gemma3_12B,
    "GEMMA3_27B": gm.nn.Gemma3_27B,
}
TOKENS, LENGTH = 96, 24
NEWLINES, START, END = 108, 255_999, 256_000  # what the library writes around an image

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AnyScale(TransformerConfig):
    """The library's config with any query scale; its own knows three."""

    scale: float = 1.0

    def query_pre_attn_scalar(self) -> float:
        return self.scale**-0.5


def their_config(config: GemmaConfig) -> TransformerConfig:
    """The library's config of an architecture that it has not published."""
    kinds = {"local": AttentionType.LOCAL_SLIDING, "global": AttentionType.GLOBAL}
    return AnyScale(
        num_embed=config.vocabulary,
        embed_dim=config.width,
        hidden_dim=config.hidden,
        num_heads=config.query_heads,
        head_dim=config.head_dimension,
        num_kv_heads=config.key_value_heads,
        final_logit_softcap=config.final_soft_cap,
        use_post_attn_norm=config.post_norms,
        use_post_ffw_norm=config.post_norms,
        attention_types=tuple(kinds[kind] for kind in config.kinds),
        attn_logits_soft_cap=config.attention_soft_cap,
        sliding_window_size=config.window,
        transpose_gating_einsum=config.post_norms,
        use_qk_norm=config.query_key_norm,
        local_base_frequency=int(config.local_rope_base),
        global_base_frequency=int(config.global_rope_base),
        global_scale_factor=config.global_rope_factor,
        scale=config.query_scale or config.head_dimension,
    )


def small(name: str) -> tuple[TransformerConfig, GemmaConfig]:
    """The library's config of a size, and ours: few heads and layers, the pattern cut."""
    theirs, ours = PUBLISHED[name].config, getattr(sizes, name)
    layers, width = (26, 2304) if name == "GEMMA2_2B" else (len(ours.pattern) + 1, 40)
    if theirs.global_scale_factor != 1:
        ours = dataclasses.replace(ours, global_rope_factor=8.0)
    theirs = dataclasses.replace(
        theirs,
        num_embed=TOKENS,
        embed_dim=width,
        hidden_dim=24,
        num_heads=4,
        num_kv_heads=1 if theirs.num_kv_heads == 1 else 2,
        head_dim=8,
        attention_types=theirs.attention_types[:layers],
        sliding_window_size=5,
        attn_logits_soft_cap=theirs.attn_logits_soft_cap and 3.0,
        final_logit_softcap=theirs.final_logit_softcap and 5.0,
        vision_encoder=None,
    )
    ours = dataclasses.replace(
        ours,
        vocabulary=TOKENS,
        width=width,
        hidden=24,
        query_heads=4,
        key_value_heads=1 if ours.key_value_heads == 1 else 2,
        head_dimension=8,
        layers=layers,
        window=5,
        attention_soft_cap=ours.attention_soft_cap and 3.0,
        final_soft_cap=ours.final_soft_cap and 5.0,
        query_scale=ours.query_scale and width / 4,
        context=64,
    )
    return theirs, ours


def random_params(config: TransformerConfig, dtype: Any) -> Tree:
    """As `model.init` nests them, but so large that attention is sharp and every norm matters."""
    random = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # Of a matrix [.., in, out] or of a table; close enough where heads come first.
        deviation = 1.4 * leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.3
        return jnp.asarray(random.normal(0, deviation, leaf.shape), dtype)

    return jax.tree.map(draw, abstract_params(gm.nn.Transformer(config=config)))


def abstract_params(model: gm.nn.Transformer) -> Tree:
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def their_logits(config: TransformerConfig, params: Tree, tokens: np.ndarray) -> np.ndarray:
    """Their function of the whole rows, in float32. Token 0 would be padding."""
    assert tokens.min() > 0
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    model = gm.nn.Transformer(config=config, dtype=jnp.float32)
    return np.asarray(model.apply({"params": params}, jnp.asarray(tokens)).logits)


def error(actual: np.ndarray, expected: np.ndarray, what: str) -> str:
    """Fails beyond the tolerance of a whole model in float32; otherwise the largest difference."""
    assert_close(actual, expected, "deep fp32", what)
    assert np.abs(expected).max() > 0.1, f"{what}: nothing was computed"
    return f"{np.abs(actual - expected).max() / np.abs(expected).max():.1e}"


def assert_same(found: Tree, expected: Tree, what: str) -> None:
    """Equal to the last bit, nesting and dtype as well."""
    found, expected = flatten_dict(found), flatten_dict(expected)
    assert found.keys() == expected.keys(), f"{what}: {found.keys() ^ expected.keys()}"
    for name, leaf in expected.items():
        a, b = np.asarray(found[name]), np.asarray(leaf)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{what}: {name}"
        assert a.tobytes() == b.tobytes(), f"{what}: {name}"


def bits(model: Gemma) -> dict[str, bytes]:
    return {name: np.asarray(leaf).tobytes() for name, leaf in model.parameters().items()}


def check_shapes(name: str) -> None:
    """The library's FLAT names and shapes of a published size are those that we write."""
    model = PUBLISHED[name]
    config = dataclasses.replace(model.config, vision_encoder=None)
    flat = layouts._nested_to_flat(abstract_params(gm.nn.Transformer(config=config)))
    theirs = {"/".join(key): leaf.shape for key, leaf in flatten_dict(flat).items()}
    tensors = {
        key: Tensor(shape, BFLOAT16, lambda: np.empty(0)) for key, shape in published(name).items()
    }
    ours = from_ours(
        to_ours(tensors, getattr(sizes, name), "hf", source=name), getattr(sizes, name), "gemma"
    )
    assert {key: tensor.shape for key, tensor in ours.items()} == theirs, name
    print(f"{name}: {len(theirs)} FLAT arrays have the library's names and shapes")


# How the library writes its layouts.
LAYOUTS: dict[str, Callable[[Tree, int], Tree]] = {
    "NESTED": lambda params, period: params,
    "FLAT": lambda params, period: layouts._nested_to_flat(params),
    "STACKED": lambda params, period: layouts._nested_to_stacked(params, period),
}


def check_library_model(name: str, dtype: Any, folder: Path) -> None:
    """A small model of the library: read in each layout, computed, and written back."""
    theirs, ours = small(name)
    params = random_params(theirs, dtype)
    tokens = np.random.default_rng(1).integers(1, TOKENS, (2, LENGTH))
    models = {}
    for layout, tree in LAYOUTS.items():
        path = folder / layout
        gm.ckpts.save_params(tree(params, len(ours.pattern)), path, wait_until_finished=True)
        models[layout] = load_model(str(path), config=ours)
        assert bits(models[layout]) == bits(models["NESTED"]), f"{name} from {layout}"
    expected = their_logits(theirs, params, tokens)
    off = error(np.asarray(models["NESTED"].logits(tokens)), expected, name)

    convert_weights(open_weights(str(folder / "STACKED"), ours), str(folder / "ours"), "gemma")
    assert_same(gm.ckpts.load_params(folder / "ours"), params, f"{name}, written by us")
    assert_same(gm.ckpts.load_params(folder / "ours", text_only=True), params, f"{name}, text")
    like = abstract_params(gm.nn.Transformer(config=theirs, dtype=dtype))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: leaf.update(sharding=place), like)
    again = gm.ckpts.load_params(folder / "ours", params=like)
    assert_same(again, params, f"{name}, written by us, as a model is initialised")
    print(
        f"{name} {np.dtype(dtype)}, {ours.layers} layers: {', '.join(LAYOUTS)} read, logits differ "
        f"by {off} of the largest; our FLAT loaded by the library, bit for bit"
    )


def seeing() -> tuple[TransformerConfig, GemmaConfig]:
    """A small Gemma 3 4B that sees images, with room for the library's markers of them."""
    theirs, ours = small("GEMMA3_4B")
    vision = VisionConfig(side=24, patch=4, width=24, layers=2, heads=3, hidden=20, tokens=9)
    encoder = dataclasses.replace(
        gm.nn.Gemma3_4B.config.vision_encoder,
        siglip_encoder=ViTModel(
            patch_size=(4, 4),
            width=vision.width,
            depth=vision.layers,
            mlp_dim=vision.hidden,
            num_heads=vision.heads,
        ),
        siglip_exit=VisionExit(output_length=vision.tokens),
        num_mm_tokens_per_image_prepool=vision.patches,
        num_mm_tokens_per_image=vision.tokens,
        image_height=vision.side,
        image_width=vision.side,
    )
    sizes_of_both = {"num_embed": END + 1, "sliding_window_size": 10}
    theirs = dataclasses.replace(theirs, vision_encoder=encoder, **sizes_of_both)
    return theirs, dataclasses.replace(ours, vision=vision, vocabulary=END + 1, window=10)


def written_out(tokens: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens with each start of an image as the library writes it, the image of each)."""
    found, index = [], []
    for token in tokens:
        if token == START:
            image = max(index, default=-1) + 1
            found += [NEWLINES, START, *[0] * 9, END, NEWLINES]
            index += [-1, -1, *[image] * 9, -1, -1]
        else:
            found.append(token)
            index.append(-1)
    assert max(index) + 1 == images
    return np.array([found]), np.array([index])


def check_vision(dtype: Any, folder: Path) -> None:
    """One that sees images: read in each layout, from pixels to logits, and written back."""
    theirs, ours = seeing()
    random = np.random.default_rng(2)
    params = random_params(theirs, dtype)

    def kept(name: str, leaf: jax.Array) -> jax.Array:
        if name.endswith("input_embedding"):  # drawn as of so many rows
            return leaf * 50
        # The library keeps what sees images in float32.
        return leaf.astype(jnp.float32) if "vision_encoder/" in name or "mm_" in name else leaf

    leaves = flatten_dict(params, sep="/")
    params = unflatten_dict({name: kept(name, leaf) for name, leaf in leaves.items()}, sep="/")
    pixels = random.integers(0, 256, (2, 24, 24, 3), np.uint8)
    tokens = np.array([2, 10, 7, START, 20, 21, START, 30, 5, 9])
    model = gm.nn.Transformer(config=theirs, dtype=jnp.float32)
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    expected = model.apply({"params": wide}, jnp.asarray(tokens[None]), images=pixels[None]).logits
    whole, index = written_out(tokens, 2)
    text = np.flatnonzero(tokens != START)
    places = text + 12 * np.cumsum(tokens == START)[text]
    for layout, tree in LAYOUTS.items():
        path = folder / layout
        gm.ckpts.save_params(tree(params, len(ours.pattern)), path, wait_until_finished=True)
        loaded = load_model(str(path), config=ours)
        given = loaded.encode_images(np.float32(pixels) / 127.5 - 1)
        found = loaded.logits(whole, image_embeddings=given, image_index_bt=index)
        found, wanted = np.asarray(found)[0, places], np.asarray(expected)[0, text]
        off = error(found, wanted, f"images from {layout}")
        blank = loaded.logits(whole, image_embeddings=given * 0, image_index_bt=index)
        moved = np.abs(np.asarray(blank)[0, places] - wanted).max()
        assert moved > 0.01 * np.abs(wanted).max(), "images do not matter"
    convert_weights(open_weights(str(folder / "FLAT"), ours), str(folder / "ours"), "gemma")
    assert_same(gm.ckpts.load_params(folder / "ours"), params, "images, written by us")
    print(
        f"images, text in {np.dtype(dtype)}: {', '.join(LAYOUTS)} read, logits differ by {off} of "
        "the largest; our FLAT loaded by the library, bit for bit"
    )


def check_vision_shapes(name: str) -> None:
    """The library's FLAT names and shapes of a published size with images are those we write."""
    flat = layouts._nested_to_flat(abstract_params(PUBLISHED[name]()))
    theirs = {"/".join(key): leaf.shape for key, leaf in flatten_dict(flat).items()}
    config = dataclasses.replace(getattr(sizes, name), vision=sizes.SO400M)
    tensors = {
        each: Tensor(row.shape, BFLOAT16, lambda: np.empty(0))
        for row in parameters(config)
        for each in row.names
    }
    ours = from_ours(tensors, config, "gemma")
    assert {key: tensor.shape for key, tensor in ours.items()} == theirs, name
    print(f"{name} with images: {len(theirs)} FLAT arrays have the library's names and shapes")


def check_fixture(name: str, folder: Path) -> None:
    """A model of transformers: our FLAT, loaded by the library, gives transformers' logits."""
    source = str(FIXTURES / name)
    ours = open_weights(source)
    convert_weights(ours, str(folder / "flat"), "gemma")
    params = gm.ckpts.load_params(folder / "flat")
    with np.load(FIXTURES / name / "reference.npz") as reference:
        tokens, expected = reference["plain/tokens"], reference["plain/logits"]
    found = their_logits(their_config(ours.config), params, tokens)
    off = error(found, expected, f"{name}: the library's logits and transformers'")
    own = error(np.asarray(load_model(str(folder / "flat")).logits(tokens)), found, name)
    print(f"{name}: the library is {off} off transformers and {own} off us")


def main() -> None:
    packages = ("gemma", "kauldron", "flax", "jax", "orbax-checkpoint")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    print(", ".join(versions), f"; tolerance {TOLERANCES['deep fp32']:g}")
    for name in PUBLISHED:
        check_shapes(name)
    for name in ("GEMMA3_4B", "GEMMA3_12B", "GEMMA3_27B"):
        check_vision_shapes(name)
    with tempfile.TemporaryDirectory() as root:
        for name in PUBLISHED:
            for dtype in (jnp.float32, jnp.bfloat16):
                check_library_model(name, dtype, Path(root) / f"{name}-{np.dtype(dtype)}")
        for dtype in (jnp.float32, jnp.bfloat16):
            check_vision(dtype, Path(root) / f"vision-{np.dtype(dtype)}")
        for folder in sorted(FIXTURES.iterdir()):
            if open_weights(str(folder)).config.vision is None:
                check_fixture(folder.name, Path(root) / folder.name)


if __name__ == "__main__":
    main()
