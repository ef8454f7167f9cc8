"""llama.cpp and gemma_train side by side: it loads our GGUF files and computes the same from them.

    python3.12 -m venv /tmp/llama && cd /tmp/llama
    bin/pip install --constraint <repository>/constraints.txt --editable <repository>
    bin/pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
    tar xf llama_cpp_python-0.3.36.tar.gz && cd llama_cpp_python-0.3.36
    sed -i 's/^#define GGML_GELU_FP16$//' vendor/llama.cpp/ggml/src/ggml-cpu/vec.h
    CMAKE_ARGS=-DLLAVA_BUILD=OFF ../bin/pip install .  # then back in the repository:
    JAX_PLATFORMS=cpu PYTHONPATH=. /tmp/llama/bin/python tests/parity/check_llama_cpp.py

The stock build looks GELU up in a table of half-precision values: it differs by up to 2e-3, hence
the sed. Small random models. Exits with 1 where logits are off by over 1e-4 or a single id differs.
"""

import asyncio
import ctypes
import importlib.metadata
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
from etils import epath

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import load_model, open_weights
from gemma_train.conversion.names import parameters, shape_of
from gemma_train.conversion.tensors import Tensor, Weights
from gemma_train.model import GemmaConfig
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer
from tests.tolerances import TOLERANCES

ALLOWED = TOLERANCES["deep fp32"]
PIECES, TOKENS = 2_100, 121
SIZE = {"width": 96, "query_heads": 4, "head_dimension": 32, "hidden": 160, "context": 256}
GEMMA1 = GemmaConfig(vocabulary=PIECES + 4, layers=3, key_value_heads=1, **SIZE)
LOCALS = replace(GEMMA1, key_value_heads=2, window=9, post_norms=True)
GEMMA2 = replace(
    LOCALS, layers=5, pattern=("local", "global"), attention_soft_cap=5.0, final_soft_cap=7.0
)
PATTERN3 = ("local",) * 5 + ("global",)
GEMMA3 = replace(LOCALS, layers=8, pattern=PATTERN3, query_key_norm=True, global_rope_base=1e6)
SCALE_OF_27B = GEMMA1.width / GEMMA1.query_heads
MODELS = {
    "Gemma 1, MQA": GEMMA1,
    "Gemma 1, MHA": replace(GEMMA1, key_value_heads=4),
    "Gemma 2": GEMMA2,
    "Gemma 2, as 27B": replace(GEMMA2, layers=46, query_scale=SCALE_OF_27B),
    "Gemma 3": replace(GEMMA3, key_value_heads=1),
    "Gemma 3, RoPE factor 8": replace(GEMMA3, global_rope_factor=8.0),
    "Gemma 3, as 27B": replace(GEMMA3, layers=62, query_scale=SCALE_OF_27B),
}
SOURCES = [file.read_text() for file in sorted(Path(asyncio.__file__).parent.glob("*.py"))]
TEXTS = [
    *SOURCES,
    " leading,  double and trailing " + " " * 40 + "\n" * 35 + "\t\tfor i in range(10):\r\n",
    "12.5e-90 Grüße, 日本語 и русский, 🙂 and 👩‍👩‍👧, \u0301 and \u200b",
    "<table><b>tags</b></table> <not_a_tag> <0x41>",
    "<start_of_turn>user\nHi  there<end_of_turn>\n<unused7><mask>[multimodal]<start_of_image>",
]
# With markers allowed, llama.cpp alone takes these for tokens: SentencePiece never reads them.
CASES = [(text, False) for text in [*TEXTS, "<bos> <eos> <unk> <pad>"]] + [(t, True) for t in TEXTS]


def random_weights(config: GemmaConfig, tokenizer: str) -> Weights:
    """Weights so large that attention is sharp and every norm matters."""
    random = np.random.default_rng(0)
    tensors = {}
    for row in parameters(config):
        shape = shape_of(row.axes, config.sizes)
        inputs = shape[0] if row.axes[0] == "d" else np.prod(shape[:-1])
        deviation = {"d": 0.3, "h": 0.3, "v d": 0.08}.get(row.axes, 1.5 * inputs**-0.5)
        for layer in range(config.layers) if "{}" in row.name else [0]:
            array = random.normal(0, deviation, shape).astype(np.float32)
            tensors[row.name.format(layer)] = Tensor(shape, array.dtype, lambda array=array: array)
    return Weights(source="-", format="-", config=config, tensors=tensors, tokenizer=tokenizer)


def their_logits(model: llama.llama_model_p, ids: list[int]) -> np.ndarray:
    """Of every position, with keys and values kept in float32."""
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = GEMMA1.context
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = llama.GGML_TYPE_F32
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama.llama_init_from_model(model, params)
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert llama.llama_decode(context, batch) == 0
    columns = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(ids), columns)).copy()
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    return logits


def their_ids(model: llama.llama_model_p, text: str, markers: bool) -> list[int]:
    data = text.encode()
    ids = (llama.llama_token * (len(data) + 1))()
    vocabulary = llama.llama_model_get_vocab(model)
    count = llama.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, markers)
    return ids[:count]


def check(name: str, config: GemmaConfig, tokenizer: str, folder: Path) -> bool:
    hf, gguf = str(folder / "hf"), str(folder / "model.gguf")
    convert_weights(random_weights(config, tokenizer), hf, "hf")
    convert_weights(open_weights(hf), gguf, "gguf")
    theirs = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
    assert theirs, f"{name}: llama.cpp does not load it"
    ours = Tokenizer.load(tokenizer)
    ids = ours.encode(SOURCES[3], bos=True)[:TOKENS]
    expected = np.asarray(load_model(hf).logits(np.asarray([ids])))[0]
    found = their_logits(theirs, ids)
    assert found.shape == expected.shape and np.abs(expected).max() > 0.1, name
    off = np.abs(found - expected).max() / np.abs(expected).max()
    wrong = [
        f"\n  not {text[:80]!r}" + " with markers" * markers
        for text, markers in CASES
        if their_ids(theirs, text, markers) != ours.encode(text, bos=True, allow_control=markers)
    ]
    llama.llama_model_free(theirs)
    same = f"{len(CASES) - len(wrong)} of {len(CASES)} texts have the same ids"
    print(f"{name}: logits differ by {off:.1e} of the largest; {same}", *wrong, flush=True)
    return bool(off <= ALLOWED) and not wrong


def main() -> int:
    packages = ("llama-cpp-python", "gguf", "jax", "numpy", "sentencepiece")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    with tempfile.TemporaryDirectory() as root:
        tokenizer = str(Path(root) / "tokenizer.model")
        config = TokenizerConfig(path=tokenizer, vocabulary=PIECES)
        train_tokenizer(SOURCES, config, epath.Path(tokenizer))
        results = [check(name, MODELS[name], tokenizer, Path(root) / name) for name in MODELS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
