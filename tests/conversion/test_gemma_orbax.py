"""Folders of the gemma library: its three layouts in, FLAT out, held to lists written down here."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from gemma_train.config import record
from gemma_train.conversion import gemma_orbax, orbax_arrays
from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import load_model, open_weights
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.names import PADDING
from gemma_train.conversion.tensors import BFLOAT16, Tensor, Weights
from gemma_train.errors import UserError
from gemma_train.model import GemmaConfig
from tests.conversion.test_names import PUBLISHED, config_of, hugging_face, of_generation, published

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
FLOAT32 = np.dtype(np.float32)
# Sizes whose gate and up the library keeps as [2, d, f]; of all others as [2, f, d].
WIDE = {"GEMMA1_2B", "GEMMA1_7B", "GEMMA2_2B"}

Tree = dict[str, dict]


def flat(generation, layers, width, heads, groups, head, hidden, rows, wide) -> Tree:
    """The shape of every array of a FLAT folder, as it is nested: design/gemma.md, section 3.2."""
    attention = {
        "attn/q_einsum": {"w": (heads, width, head)},
        "attn/kv_einsum": {"w": (2, groups, width, head)},
    }
    if heads == groups:
        attention = {"attn/qkv_einsum": {"w": (3, heads, width, head)}}
    layer = {
        **attention,
        "attn/attn_vec_einsum": {"w": (heads, head, width)},
        "mlp/gating_einsum": {"w": (2, width, hidden) if wide else (2, hidden, width)},
        "mlp/linear": {"w": (hidden, width)},
        "pre_attention_norm": {"scale": (width,)},
        "pre_ffw_norm": {"scale": (width,)},
    }
    if generation >= 2:
        layer |= {"post_attention_norm": {"scale": (width,)}, "post_ffw_norm": {"scale": (width,)}}
    if generation == 3:
        layer |= {"attn/_query_norm": {"scale": (head,)}, "attn/_key_norm": {"scale": (head,)}}
    tree = {
        "transformer/embedder": {"input_embedding": (rows, width)},
        "transformer/final_norm": {"scale": (width,)},
    }
    for number in range(layers):
        tree |= {f"transformer/layer_{number}/{name}": layer[name] for name in layer}
    return tree


def flat_of(config: GemmaConfig, name: str, rows: int | None = None) -> Tree:
    """The same of a config that was made of the published one of this name."""
    heads = config.query_heads, config.key_value_heads, config.head_dimension
    sizes = config.layers, config.width, *heads, config.hidden, rows or config.vocabulary
    return flat(of_generation(name), *sizes, name in WIDE)


def library_shapes(name: str) -> Tree:
    """What the library's folder of a published size holds: with its rows of padding."""
    *sizes, rows, _ = PUBLISHED[name]
    return flat(of_generation(name), *sizes, 256_128 if rows == 256_000 else rows, name in WIDE)


def joined(tree: Tree) -> dict:
    """The leaves by their path: its names joined by '/'."""
    return {
        f"{name}/{rest}".removesuffix("/"): leaf
        for name, branch in tree.items()
        for rest, leaf in (joined(branch).items() if isinstance(branch, dict) else [("", branch)])
    }


def nested(leaves: dict) -> Tree:
    """The inverse of `joined`: a level for each name in the path."""
    tree: Tree = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = leaf
    return tree


def filled(shapes: Tree, dtype: np.dtype = FLOAT32) -> Tree:
    """Random arrays of these shapes."""
    random = np.random.default_rng(0)
    return {
        name: {
            last: random.standard_normal(shape, np.float32).astype(dtype)
            for last, shape in leaves.items()
        }
        for name, leaves in shapes.items()
    }


def save(folder: Path, tree: Tree) -> str:
    """Write a folder as `gm.ckpts.save_params` does."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return str(folder)


def restored(folder: str | Path) -> Tree:
    """Read a folder as the first releases of the library did."""
    return ocp.PyTreeCheckpointer().restore(folder)


def bits(tree: Tree) -> dict:
    return {n: (str(a.dtype), a.shape, a.tobytes()) for n, a in joined(tree).items()}


def read(weights: Weights) -> Tree:
    return {name: tensor.read() for name, tensor in weights.tensors.items()}


def in_memory(weights: Weights) -> Weights:
    arrays = read(weights)
    tensors = {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}
    return replace(weights, tensors=tensors)


def unread(shapes: dict[str, tuple]) -> dict[str, Tensor]:
    """Tensors of these shapes that must not be read."""

    def fail():
        raise AssertionError("read too early")

    return {name: Tensor(shape, BFLOAT16, fail) for name, shape in shapes.items()}


def miniature(name: str, **changes) -> GemmaConfig:
    """A size with its heads, but narrow and shallow; where its pattern is longer, it is cut."""
    size = config_of(name)
    layers = {"GEMMA1_2B": 1, "GEMMA1_7B": 2}.get(name, 3)
    pattern = size.pattern[-2:]
    # transformers wants a width that the heads divide.
    small = {"vocabulary": 30, "width": 32, "head_dimension": 6, "hidden": 14, "window": None}
    small |= {"window": 4} if size.window else {}
    small |= {"query_scale": size.query_scale and 32 / size.query_heads}
    return replace(size, **{"layers": layers, "pattern": pattern, **small, **changes})


@pytest.fixture
def looks_like(monkeypatch, tmp_path):
    """Makes a folder whose checkpoint seems to hold these tensors; none is allocated."""

    def make(tensors: dict[str, Tensor]) -> str:
        monkeypatch.setattr(orbax_arrays, "stored", lambda folder: tensors)
        (tmp_path / "_METADATA").touch()
        return str(tmp_path)

    return make


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_has_the_librarys_names_and_shapes(name):
    config = config_of(name)
    ours = to_ours(unread(published(name)), config, "hf", source="somewhere")
    theirs = from_ours(ours, config, "gemma")
    assert {n: tensor.shape for n, tensor in theirs.items()} == joined(library_shapes(name))


def by_hand(file: dict[str, np.ndarray], layers: int, heads: int, groups: int, wide: bool) -> Tree:
    """The FLAT arrays of Hugging Face's: each matrix turned by hand."""

    def heads_of(matrix: np.ndarray, count: int) -> np.ndarray:  # [(n h), d] -> [n, d, h]
        return matrix.reshape(count, -1, matrix.shape[1]).transpose(0, 2, 1)

    tree = {
        "transformer/embedder": {"input_embedding": file["model.embed_tokens.weight"]},
        "transformer/final_norm": {"scale": file["model.norm.weight"]},
    }
    gemma_1 = "model.layers.0.pre_feedforward_layernorm.weight" not in file
    names = {"input_layernorm": "pre_attention_norm", "post_attention_layernorm": "pre_ffw_norm"}
    if not gemma_1:
        names |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "pre_ffw_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    if "model.layers.0.self_attn.q_norm.weight" in file:
        names |= {"self_attn.q_norm": "attn/_query_norm", "self_attn.k_norm": "attn/_key_norm"}
    for number in range(layers):
        here = f"transformer/layer_{number}/"

        def theirs(name: str, number: int = number) -> np.ndarray:
            return file[f"model.layers.{number}.{name}.weight"]

        query = heads_of(theirs("self_attn.q_proj"), heads)
        key_value = [heads_of(theirs(f"self_attn.{part}_proj"), groups) for part in "kv"]
        if heads == groups:
            tree[here + "attn/qkv_einsum"] = {"w": np.stack([query, *key_value])}
        else:
            tree[here + "attn/q_einsum"] = {"w": query}
            tree[here + "attn/kv_einsum"] = {"w": np.stack(key_value)}
        output = theirs("self_attn.o_proj")
        tree[here + "attn/attn_vec_einsum"] = {"w": output.T.reshape(heads, -1, len(output))}
        gates = np.stack([theirs("mlp.gate_proj"), theirs("mlp.up_proj")])
        tree[here + "mlp/gating_einsum"] = {"w": gates.transpose(0, 2, 1) if wide else gates}
        tree[here + "mlp/linear"] = {"w": theirs("mlp.down_proj").T}
        tree |= {here + ours: {"scale": theirs(name)} for name, ours in names.items()}
    return tree


def hugging_face_file(name: str) -> dict[str, np.ndarray]:
    return {
        key: array
        for file in sorted((FIXTURES / name).glob("*.safetensors"))
        for key, array in load_file(file).items()
    }


# (fixture, query heads, key/value heads, layers)
MODELS = [
    ("gemma1_mqa", 4, 1, 2),
    ("gemma1_mha", 4, 4, 3),
    ("gemma2_gqa", 4, 2, 4),
    ("gemma3_long", 4, 2, 8),
    ("gemma3_mqa", 4, 1, 7),
]


@pytest.mark.parametrize(("name", "heads", "groups", "layers"), MODELS)
def test_orbax_finds_every_matrix_turned_as_the_library_keeps_it(
    name, heads, groups, layers, tmp_path
):
    source = open_weights(str(FIXTURES / name))
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    wide = name.startswith("gemma1")
    expected = by_hand(hugging_face_file(name), layers, heads, groups, wide)
    found = restored(tmp_path / "flat")
    assert {n: set(leaves) for n, leaves in found.items()} == {
        n: set(leaves) for n, leaves in expected.items()
    }
    assert bits(found) == bits(expected)


def test_gate_and_up_of_gemma_2_2b_are_turned_and_of_9b_are_not():
    for name in ("GEMMA2_2B", "GEMMA2_9B"):
        config = replace(config_of(name), vocabulary=2, head_dimension=2, hidden=3)
        heads = config.query_heads, config.key_value_heads, 2
        shapes = hugging_face(2, config.layers, config.width, *heads, 3, 2)
        theirs = unread(shapes)
        gates = []
        for part in ("gate", "up"):
            key = f"model.layers.25.mlp.{part}_proj.weight"
            gates.append(np.random.default_rng(len(gates)).random(shapes[key], np.float32))
            theirs[key] = Tensor(shapes[key], FLOAT32, lambda gate=gates[-1]: gate)
        flat = from_ours(to_ours(theirs, config, "hf", source=""), config, "gemma")
        found = flat["transformer/layer_25/mlp/gating_einsum/w"].read()
        axes = (0, 2, 1) if name in WIDE else (0, 1, 2)
        np.testing.assert_array_equal(found, np.stack(gates).transpose(axes))


def test_the_library_restores_a_folder_by_its_metadata_as_jax_arrays(tmp_path):
    """Step by step what `gm.ckpts.load_params` does."""
    import jax

    source = open_weights(str(FIXTURES / "gemma1_mqa")).cast(BFLOAT16)
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    checkpointer = ocp.StandardCheckpointer()
    tree = checkpointer.metadata(tmp_path / "flat").item_metadata.tree
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
    found = checkpointer.restore(tmp_path / "flat", wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {BFLOAT16}
    assert bits(jax.tree.map(np.asarray, found)) == bits(restored(tmp_path / "flat"))


def test_a_folder_keeps_its_config_and_its_tokenizer(tmp_path, tokenizer_file):
    source = open_weights(str(FIXTURES / "gemma3_long"))
    source = replace(source, tokenizer=str(tokenizer_file))
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    found = open_weights(str(tmp_path / "flat"))
    assert found.config == source.config
    assert Path(found.tokenizer or "").read_bytes() == tokenizer_file.read_bytes()
    assert (found.format, found.left_out, found.step) == ("gemma", (), None)


# Of a size whose pattern of three the layers cut: types 0 and 1 have two layers, type 2 has one.
CUT = miniature("GEMMA3_4B", layers=5, pattern=("local", "local", "global"))
VISION = {
    "SigLiPFromPatches_0/siglip_encoder": {"pos_embedding": (1, 4, 3)},
    "SigLiPFromPatches_0/siglip_encoder/embedding": {"kernel": (2, 2, 3, 3), "bias": (3,)},
    "transformer/embedder/mm_input_projection": {"w": (3, 32)},
    "transformer/embedder/mm_soft_embedding_norm": {"scale": (3,)},
}


def as_nested(tree: Tree) -> Tree:
    """What `model.init` makes: no 'transformer', the feed-forward's leaves a level higher."""
    leaves = joined(tree)
    for old, new in (
        ("transformer/", ""),
        ("SigLiPFromPatches_0/", "vision_encoder/"),
        ("gating_einsum/w", "gating_einsum"),
        ("linear/w", "linear"),
    ):
        leaves = {name.replace(old, new): leaf for name, leaf in leaves.items()}
    return nested(leaves)


def as_stacked(tree: Tree, length: int) -> Tree:
    """Layers that stand in one place of the pattern as one array, by repetition."""
    stacked: Tree = {}
    for name, leaves in tree.items():
        if not name.startswith("transformer/layer_"):
            stacked[name] = leaves
            continue
        number, rest = name.removeprefix("transformer/layer_").split("/", 1)
        if int(number) < length:
            alike = [
                tree[f"transformer/layer_{layer}/{rest}"]
                for layer in range(int(number), CUT.layers, length)
            ]
            stacked[f"transformer/stacked_layers/attention_type_{number}/{rest}"] = {
                last: np.stack([one[last] for one in alike]) for last in leaves
            }
    return stacked


def deeper(tree: Tree) -> Tree:
    """A dump of post-training."""
    return {f"rlx_networks/policy_network/{name}": leaves for name, leaves in tree.items()}


@pytest.fixture(scope="module")
def text() -> Tree:
    return filled(flat_of(CUT, "GEMMA3_4B"), BFLOAT16)


@pytest.fixture(scope="module")
def from_flat(text, tmp_path_factory) -> dict[str, np.ndarray]:
    """Our parameters, read from FLAT."""
    return read(open_weights(save(tmp_path_factory.mktemp("flat") / "text", text), CUT))


LAYOUTS = {
    "NESTED": as_nested,
    "STACKED": lambda tree: as_stacked(tree, 3),
    "STACKED by another period": lambda tree: as_stacked(tree, 4),
    "deeper FLAT": deeper,
    "deeper STACKED, in folders": lambda tree: nested(joined(deeper(as_stacked(tree, 3)))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(layout, text, from_flat, tmp_path):
    weights = open_weights(save(tmp_path / "other", LAYOUTS[layout](text)), CUT)
    assert weights.config == CUT and not weights.left_out
    assert bits(read(weights)) == bits(from_flat)


@pytest.mark.parametrize("layout", ["FLAT", *LAYOUTS])
def test_vision_and_projector_are_left_out_and_reported(layout, text, from_flat, tmp_path):
    tree = {**text, **filled(VISION)}
    tree["transformer/embedder"] = {
        **text["transformer/embedder"],
        "mm_output_embedding": np.zeros((2, 32), np.float32),
        "mm_input_embedding_extra": np.zeros((2, 32), np.float32),
    }
    tree = LAYOUTS[layout](tree) if layout in LAYOUTS else tree
    weights = open_weights(save(tmp_path / "multimodal", tree), CUT)
    not_text = ("mm_", "SigLiP", "vision_encoder")
    expected = {name for name in joined(tree) if any(part in name for part in not_text)}
    assert len(weights.left_out) == len(expected) == 7
    assert set(weights.left_out) == expected
    assert weights.dtype == BFLOAT16  # vision is float32
    assert weights.tensors.keys() == from_flat.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_known_by_its_shapes(name, looks_like):
    found = open_weights(looks_like(unread(joined(library_shapes(name)))))
    expected = config_of(name)
    if name in ("GEMMA3_4B", "GEMMA3_12B", "GEMMA3_27B"):
        expected = replace(expected, global_rope_factor=8.0, context=131_072)
    assert found.config == expected
    assert PADDING in found.tensors if name < "GEMMA3" else PADDING not in found.tensors


def test_a_record_says_more_than_the_shapes_and_a_config_must_agree(looks_like, tmp_path):
    folder = looks_like(unread(joined(library_shapes("GEMMA3_4B"))))
    unscaled = config_of("GEMMA3_4B")
    with pytest.raises(UserError, match="global_rope_factor was 8.0, is 1.0"):
        open_weights(folder, unscaled)
    short = replace(unscaled, context=4096)
    (tmp_path / gemma_orbax.RECORD).write_text(record(short))
    assert open_weights(folder).config == short
    assert open_weights(folder, unscaled).config == short
    with pytest.raises(UserError, match="window was 1024, is 7"):
        open_weights(folder, replace(unscaled, window=7))


def test_an_unpublished_size_needs_a_config(looks_like):
    tiny = unread(joined(flat_of(CUT, "GEMMA3_4B")))
    folder = looks_like(tiny)
    shape = r"5 layers, heads x head dimension x width \(8, 6, 32\)"
    with pytest.raises(
        UserError, match=f"is no published Gemma \\({shape}\\).*name the config"
    ) as e:
        open_weights(folder)
    assert "\n" not in str(e.value)
    assert open_weights(folder, CUT).config == CUT
    # Without the tensor that it would be known by, and with one of another rank.
    for shape in (None, (4,)):
        name = "transformer/layer_0/attn/attn_vec_einsum/w"
        rest = {key: tensor for key, tensor in tiny.items() if key != name}
        folder = looks_like(rest | (unread({name: shape}) if shape else {}))
        with pytest.raises(UserError, match="is no published Gemma"):
            open_weights(folder)


LAYER_3 = "transformer/layer_3/"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn/q_einsum/w": None}, "'transformer/layer_3/attn/q_einsum/w' is missing"),
        ({"mlp/linear/b": (32,)}, "'transformer/layer_3/mlp/linear/b' is unexpected"),
        ({"attn/kv_einsum/w": (2, 4, 6, 32)}, r"kv_einsum/w' has shape \(2, 4, 6, 32\).*4, 32, 6"),
        (
            {"mlp/gating_einsum/w": (2, 32, 14)},
            r"gating_einsum/w' has shape \(2, 32, 14\).* 14, 32",
        ),
        ({"post_ffw_norm/scale": (1, 32)}, r"post_ffw_norm/scale' has shape \(1, 32\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, message, looks_like):
    shapes = joined(flat_of(CUT, "GEMMA3_4B")) | {LAYER_3 + name: s for name, s in change.items()}
    folder = looks_like(unread({name: shape for name, shape in shapes.items() if shape}))
    with pytest.raises(UserError, match=message) as refusal:
        open_weights(folder, CUT)
    assert str(refusal.value).startswith(folder) and "\n" not in str(refusal.value)


def test_a_table_may_have_the_librarys_rows_but_no_others(looks_like):
    config = miniature("GEMMA2_9B", vocabulary=256_000)
    for rows, holds in ((256_000, True), (256_128, True), (256_064, False), (128, False)):
        folder = looks_like(unread(joined(flat_of(config, "GEMMA2_9B", rows))))
        if holds:
            assert open_weights(folder, config).parameters["embedding/table"].shape == (256_000, 32)
        else:
            with pytest.raises(UserError, match=rf"input_embedding' has shape \({rows}, 32\)"):
                open_weights(folder, config)


@pytest.mark.parametrize("config", [None, CUT], ids=["alone", "with a config"])
@pytest.mark.parametrize(
    "tree",
    [
        {"params": {"dense": {"kernel": np.ones((2, 3))}}, "step": np.int32(3)},
        {"model/pattern/0/attention/query": np.ones((2, 3)), "step": np.int32(3)},
        [np.ones(3)],
    ],
    ids=["another model", "a run's checkpoint", "a list"],
)
def test_a_checkpoint_of_something_else_is_no_gemma(tree, config, tmp_path):
    folder = save(tmp_path / "other", tree)
    with pytest.raises(UserError, match=f"{folder} is an Orbax checkpoint, but not one of a Gemma"):
        open_weights(folder, config)


def test_a_folder_without_orbax_in_it_is_no_model(tmp_path):
    (tmp_path / "weights.msgpack").touch()
    with pytest.raises(UserError, match="holds no model: neither config.json"):
        open_weights(str(tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A FLAT folder of ours."""
    folder = tmp_path_factory.mktemp("whole") / "flat"
    convert_weights(open_weights(str(FIXTURES / "gemma1_mqa")), str(folder), "gemma")
    return folder


def largest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda file: file.stat().st_size)


FILES = {
    "_METADATA": lambda folder: folder / "_METADATA",
    "manifest": lambda folder: folder / "manifest.ocdbt",
    "index": lambda folder: largest(folder, "d/*"),
    "values": lambda folder: largest(folder, "ocdbt.process_*/d/*"),
}


# Orbax's event loop complains after its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("rest", [None, 100], ids=["removed", "truncated"])
@pytest.mark.parametrize("which", FILES)
def test_a_damaged_folder_is_refused_in_one_line_and_nothing_is_written(
    which, rest, whole, tmp_path
):
    folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
    file = FILES[which](folder)
    content = file.read_bytes()
    file.unlink()
    if rest is not None:
        file.write_bytes(content[:rest])
    with pytest.raises(UserError, match=f"checkpoint {folder} cannot be read: ") as refusal:
        convert_weights(open_weights(str(folder)), str(tmp_path / "new"), "hf")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["damaged"]


def test_gate_and_up_are_known_by_their_shape_whichever_way_they_lie(tmp_path):
    config = miniature("GEMMA2_2B", layers=1)
    tree = filled(flat_of(config, "GEMMA2_9B"))
    turned = {
        name: {"w": leaves["w"].swapaxes(1, 2)} if "gating" in name else leaves
        for name, leaves in tree.items()
    }
    tall, wide = (save(tmp_path / name, t) for name, t in (("tall", tree), ("wide", turned)))
    assert bits(read(open_weights(wide, config))) == bits(read(open_weights(tall, config)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_miniature_of_every_size_comes_back_from_a_run_and_from_hugging_face(name, tmp_path):
    config = miniature(name)
    dtype = FLOAT32 if name in ("GEMMA1_7B", "GEMMA2_9B", "GEMMA3_1B") else BFLOAT16
    # By its width the miniature of Gemma 2 2B is none, and has its gates as the others do.
    given = filled(flat_of(config, "GEMMA2_9B" if name == "GEMMA2_2B" else name), dtype)
    source = in_memory(open_weights(save(tmp_path / "source", given), config))
    for format in ("run", "hf"):
        between, back = str(tmp_path / format), str(tmp_path / f"back_from_{format}")
        convert_weights(source, between, format)
        convert_weights(open_weights(between), back, "gemma")
        assert bits(restored(back)) == bits(given)
        assert open_weights(back).config == config


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, FLOAT32) for name, *_ in MODELS),
        ("gemma1_mha", BFLOAT16),
        ("gemma2_gqa", BFLOAT16),
    ],
    ids=str,
)
def test_hugging_faces_tensors_come_back(name, dtype, tmp_path):
    source = open_weights(str(FIXTURES / name)).cast(dtype)
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    flat = open_weights(str(tmp_path / "flat"))
    convert_weights(flat, str(tmp_path / "hf"), "hf")
    given = {key: array.astype(dtype) for key, array in hugging_face_file(name).items()}
    assert bits(load_file(tmp_path / "hf" / "model.safetensors")) == bits(given)
    assert open_weights(str(tmp_path / "hf")).config == source.config


def test_rows_of_padding_pass_through_a_run_and_are_zeros_where_none_were_kept(tmp_path):
    narrow = {"width": 2, "query_heads": 2, "key_value_heads": 1}
    config = miniature("GEMMA2_9B", vocabulary=256_000, layers=1, **narrow)
    given = filled(flat_of(config, "GEMMA2_9B", 256_128))
    source = save(tmp_path / "source", given)
    for format in ("run", "hf"):
        convert_weights(open_weights(source, config), str(tmp_path / format), format)
        convert_weights(
            open_weights(str(tmp_path / format)), str(tmp_path / f"back_{format}"), "gemma"
        )
    assert load_model(str(tmp_path / "run")).embedding.table.shape == (256_000, 2)
    assert bits(restored(tmp_path / "back_run")) == bits(given)
    # transformers' table has the rows of the tokenizer.
    table = load_file(tmp_path / "hf" / "model.safetensors")["model.embed_tokens.weight"]
    assert table.shape == (256_000, 2)
    given["transformer/embedder"]["input_embedding"][256_000:] = 0
    assert bits(restored(tmp_path / "back_hf")) == bits(given)
