"""Every field, tensor and piece of a written file, read back with gguf-py's own reader."""

import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
from etils import epath
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from gguf.constants import MODEL_ARCH, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES
from sentencepiece import sentencepiece_model_pb2

from gemma_train.conversion import gguf_file
from gemma_train.conversion.names import PADDING, parameters
from gemma_train.conversion.place import shape_of
from gemma_train.conversion.tensors import BFLOAT16, DTYPES, Tensor, Weights
from gemma_train.errors import UserError
from gemma_train.model import sizes
from gemma_train.model.config import GemmaConfig
from gemma_train.tokenizer.tokenizer import Tokenizer

GIVEN = ["<start_of_turn>", "<end_of_turn>", "[multimodal]", "\u2581\u2581", "\n\n", "<table>"]
ROWS_WITHOUT_PIECE = 3
PIECES = 4 + len(GIVEN) + 256 + 5
GEMMA = GemmaConfig(
    vocabulary=PIECES + ROWS_WITHOUT_PIECE,
    width=20,
    layers=3,
    query_heads=4,
    key_value_heads=2,
    head_dimension=6,
    hidden=14,
    context=64,
)
GEMMA2 = replace(
    GEMMA,
    pattern=("local", "global"),
    window=5,
    post_norms=True,
    attention_soft_cap=50.0,
    final_soft_cap=30.0,
)
GEMMA3 = replace(
    GEMMA,
    layers=7,
    pattern=("local",) * 5 + ("global",),
    window=7,
    post_norms=True,
    query_key_norm=True,
    global_rope_base=1_000_000.0,
    global_rope_factor=8.0,
)
CONFIGS = {"gemma": GEMMA, "gemma2": GEMMA2, "gemma3": GEMMA3}
PUBLISHED = {name: size for name, size in vars(sizes).items() if isinstance(size, GemmaConfig)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """The path of a tokenizer with pieces of every kind, in the order of Gemma's."""
    proto = sentencepiece_model_pb2.ModelProto()
    kind = proto.SentencePiece.Type
    pieces = [(text, 0.0, kind.CONTROL) for text in ("<pad>", "<eos>", "<bos>")]
    pieces += [("<unk>", 0.0, kind.UNKNOWN)]
    pieces += [(text, 0.0, kind.USER_DEFINED) for text in GIVEN]
    pieces += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    pieces += [(text, -float(i), kind.NORMAL) for i, text in enumerate(["ab", "\u2581", "a", "b"])]
    pieces += [("c", -9.5, kind.UNUSED)]
    for text, score, number in pieces:
        proto.pieces.add(piece=text, score=score, type=number)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id = 0, 1
    proto.trainer_spec.bos_id, proto.trainer_spec.unk_id = 2, 3
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    return str(path)


@pytest.fixture
def written(tokenizer, tmp_path):
    """Writes a model's weights; returns what gguf-py reads of them, and the bytes reported."""

    def make(weights: Weights) -> tuple[GGUFReader, int]:
        advanced = []
        file = epath.Path(tmp_path) / "model.gguf"
        gguf_file.write(replace(weights, tokenizer=tokenizer), file, advanced.append)
        return GGUFReader(file), sum(advanced)

    return make


def arrays_of(config: GemmaConfig) -> dict[str, np.ndarray]:
    """A model's parameters by our names, random."""
    random = np.random.default_rng(0)
    return {
        row.name.format(layer): random.standard_normal(shape_of(row.axes, config.sizes), np.float32)
        for row in parameters(config)
        for layer in (range(config.layers) if "{}" in row.name else [0])
    }


def stored(config: GemmaConfig, arrays: dict[str, np.ndarray]) -> Weights:
    tensors = {
        name: Tensor(array.shape, array.dtype, lambda array=array: array)
        for name, array in arrays.items()
    }
    return Weights(source="models/mine", format="hf", config=config, tensors=tensors)


def in_llama_cpp(ours: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """A parameter's name and value there, written a second time to hold the table to it."""
    *folders, name = ours.split("/")
    prefix = f"blk.{folders[1]}." if folders[:1] == ["layers"] else ""
    names = {
        "table": "token_embd",
        "final_norm": "output_norm",
        "query": "attn_q",
        "key": "attn_k",
        "value": "attn_v",
        "output": "attn_output",
        "query_norm": "attn_q_norm",
        "key_norm": "attn_k_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
        "pre_attention_norm": "attn_norm",
        "post_attention_norm": "post_attention_norm",
        "pre_feed_forward_norm": "ffn_norm",
        "post_feed_forward_norm": "post_ffw_norm",
    }
    if name.endswith("_norm"):
        array = 1 + array.astype(np.float32)
    elif name == "output":  # heads, dimension of a head, width
        array = array.reshape(-1, array.shape[-1]).T
    elif name != "table":  # what goes in comes first, here
        array = array.reshape(array.shape[0], -1).T
    return f"{prefix}{names[name]}.weight", array


def values_of(tensor) -> np.ndarray:
    shape = tuple(int(length) for length in reversed(tensor.shape))
    if tensor.tensor_type == GGMLQuantizationType.BF16:
        return np.ascontiguousarray(tensor.data).view(BFLOAT16).reshape(shape)
    return tensor.data.reshape(shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_where_and_what_llama_cpp_expects(written, name, dtype):
    arrays = {n: array.astype(DTYPES[dtype]) for n, array in arrays_of(CONFIGS[name]).items()}
    file, advanced = written(stored(CONFIGS[name], arrays))
    expected = dict(in_llama_cpp(*item) for item in arrays.items())
    found = {tensor.name: values_of(tensor) for tensor in file.tensors}
    assert found.keys() == expected.keys()
    for tensor, array in expected.items():
        assert found[tensor].dtype == (np.float32 if array.ndim == 1 else DTYPES[dtype]), tensor
        np.testing.assert_array_equal(found[tensor], array, err_msg=tensor)
    assert advanced == sum(array.nbytes for array in expected.values())


@pytest.mark.parametrize(
    ("architecture", "config"),
    [(MODEL_ARCH.GEMMA, GEMMA), (MODEL_ARCH.GEMMA2, GEMMA2), (MODEL_ARCH.GEMMA3, GEMMA3)],
)
def test_the_name_table_has_llama_cpps_names(architecture, config):
    # A head of its own is optional there: without it the embedding is taken.
    theirs = {TENSOR_NAMES[t] for t in MODEL_TENSORS[architecture] if t != MODEL_TENSOR.OUTPUT}
    ours = {row.gguf.name.replace("{}", "{bid}") for row in parameters(config)}
    assert ours == {f"{name}.weight" for name in theirs}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_metadata_are_the_architecture(written, name):
    config = CONFIGS[name]
    file, _ = written(stored(config, arrays_of(config)))
    found = {key: field.contents() for key, field in file.fields.items()}
    expected = {
        "general.architecture": name,
        "general.type": "model",
        "general.name": "mine",
        "general.file_type": 0,
        f"{name}.context_length": 64,
        f"{name}.embedding_length": 20,
        f"{name}.block_count": config.layers,
        f"{name}.feed_forward_length": 14,
        f"{name}.attention.head_count": 4,
        f"{name}.attention.head_count_kv": 2,
        f"{name}.attention.key_length": 6,
        f"{name}.attention.value_length": 6,
        f"{name}.attention.layer_norm_rms_epsilon": np.float32(1e-6),
        f"{name}.rope.freq_base": 10_000.0,
    }
    if name != "gemma":
        expected |= {
            f"{name}.attention.sliding_window": config.window,
            f"{name}.rope.freq_base_swa": 10_000.0,
        }
    if name == "gemma2":
        expected |= {
            "gemma2.attn_logit_softcapping": 50.0,
            "gemma2.final_logit_softcapping": 30.0,
        }
    if name == "gemma3":
        expected |= {
            "gemma3.rope.freq_base": 1_000_000.0,
            "gemma3.rope.scaling.type": "linear",
            "gemma3.rope.scaling.factor": 8.0,
        }
    of_file = {key for key in found if key.startswith(("GGUF.", "tokenizer."))}
    assert {key: found[key] for key in found.keys() - of_file} == expected


@pytest.mark.parametrize(("dtype", "number"), [("float16", 1), ("bfloat16", 32)])
def test_the_file_type_says_what_the_matrices_are(written, dtype, number):
    file, _ = written(stored(GEMMA, arrays_of(GEMMA)).cast(DTYPES[dtype]))
    assert file.fields["general.file_type"].contents() == number


def test_the_tokenizer_is_the_sentencepiece_model(written, tokenizer):
    file, _ = written(stored(GEMMA, arrays_of(GEMMA)))
    found = {
        key.removeprefix("tokenizer.ggml."): field.contents()
        for key, field in file.fields.items()
        if key.startswith("tokenizer.")
    }
    texts, scores, types = (found.pop(key) for key in ("tokens", "scores", "token_type"))
    pieces = Tokenizer.load(tokenizer).pieces()
    assert len(texts) == len(scores) == len(types) == GEMMA.vocabulary
    for index, piece in enumerate(pieces):
        if piece.kind in ("NORMAL", "BYTE", "UNUSED"):
            expected = (piece.text, piece.score, TokenType[piece.kind])
        elif piece.kind in ("CONTROL", "UNKNOWN"):
            expected = (piece.text, -1000.0, TokenType[piece.kind])
        else:
            layout = piece.text in ("\u2581\u2581", "\n\n", "<table>")
            kind = TokenType.USER_DEFINED if layout else TokenType.CONTROL
            expected = (piece.text.replace("\u2581", " "), -1000.0, kind)
        assert (texts[index], scores[index], types[index]) == expected
    assert texts[len(pieces) :] == [f"[PAD{i}]" for i in range(PIECES, GEMMA.vocabulary)]
    assert set(types[len(pieces) :]) == {TokenType.UNUSED}
    assert found == {
        "model": "llama",
        "pre": "default",
        "padding_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "unknown_token_id": 3,
        "eot_token_id": 5,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": False,
    }


def test_rows_that_pad_a_foreign_table_are_left_out(written):
    arrays = arrays_of(GEMMA)
    arrays[PADDING] = np.ones((8, GEMMA.width), np.float32)
    file, _ = written(stored(GEMMA, arrays))
    table = next(tensor for tensor in file.tensors if tensor.name == "token_embd.weight")
    np.testing.assert_array_equal(values_of(table), arrays["embedding/table"])


def test_one_tensor_is_in_memory_at_a_time(written):
    read = []

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        def fresh() -> np.ndarray:
            alive = [other for other, array in read if array() is not None]
            assert not alive, f"{alive} are kept while {name} is read"
            array = np.full(shape, len(read), np.float32)
            read.append((name, weakref.ref(array)))
            return array

        return Tensor(shape, np.dtype(np.float32), fresh)

    shapes = {name: array.shape for name, array in arrays_of(GEMMA3).items()}
    tensors = {name: tensor(name, shape) for name, shape in shapes.items()}
    written(replace(stored(GEMMA3, {}), tensors=tensors))
    assert sorted(name for name, _ in read) == sorted(shapes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_accepted(name, tmp_path):
    # The architecture is looked at first, then the tokenizer, which is missing here.
    with pytest.raises(UserError, match="--tokenizer"):
        gguf_file.write(stored(PUBLISHED[name], {}), epath.Path(tmp_path) / "x.gguf", print)


REFUSED = {
    "query_key_norm": replace(GEMMA3, post_norms=False),
    "pattern": replace(GEMMA3, pattern=("local", "global")),
    "pattern of 2": replace(GEMMA2, pattern=("global", "local")),
    "pattern of 1": replace(GEMMA, pattern=("local",), window=4),
    "query_scale": replace(GEMMA3, query_scale=5.0),
    "query_scale in 46 layers": replace(GEMMA2, layers=46, query_scale=None),
    "query_scale in 62 layers": replace(GEMMA3, layers=62, query_scale=6.0),
    "query_scale of width": replace(GEMMA2, query_scale=GEMMA2.width / GEMMA2.query_heads),
    "attention_soft_cap": replace(GEMMA2, attention_soft_cap=None),
    "attention_soft_cap of 3": replace(GEMMA3, attention_soft_cap=50.0),
    "final_soft_cap": replace(GEMMA2, final_soft_cap=None),
    "final_soft_cap of 1": replace(GEMMA, final_soft_cap=30.0),
    "local_rope_base": replace(GEMMA3, local_rope_base=20_000.0),
    "local_rope_base of 2": replace(GEMMA2, global_rope_base=1_000_000.0),
    "global_rope_factor": replace(GEMMA2, global_rope_factor=8.0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_differently_is_refused(case, tokenizer, tmp_path):
    weights = replace(stored(REFUSED[case], {}), tokenizer=tokenizer)
    field = case.split()[0]
    with pytest.raises(UserError, match=rf"^model\.{field} is .*, but llama\.cpp's gemma") as error:
        gguf_file.write(weights, epath.Path(tmp_path) / "x.gguf", print)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_of_another_model_is_refused(tokenizer, tmp_path):
    config = replace(GEMMA, vocabulary=PIECES - 1)
    weights = replace(stored(config, arrays_of(config)), tokenizer=tokenizer)
    counts = rf"{PIECES} pieces.*{PIECES - 1} rows"
    with pytest.raises(UserError, match=re.escape(tokenizer) + ".*" + counts):
        gguf_file.write(weights, epath.Path(tmp_path) / "x.gguf", print)
    assert not any(tmp_path.iterdir())
