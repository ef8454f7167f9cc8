"""A conversion holds a tensor or two, whatever the size of the model."""

import hashlib
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gemma_train.conversion import convert_weights, open_weights, orbax_arrays, safetensors_files
from gemma_train.conversion.huggingface_config import write_config
from gemma_train.conversion.mapping import from_ours
from gemma_train.conversion.names import parameters
from gemma_train.conversion.place import shape_of
from gemma_train.conversion.tensors import BFLOAT16, Tensor, Weights, stacked
from gemma_train.model import GemmaConfig
from gemma_train.model.sizes import (
    GEMMA1_7B,
    GEMMA2_9B,
    GEMMA2_27B,
    GEMMA3_4B,
    GEMMA3_12B,
    GEMMA3_27B,
)

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests/parity/fixtures/gemma3_long"
LONG = {"global_rope_factor": 8.0, "context": 131_072}


class Ledger:
    """How many bytes of the arrays that were read are alive, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def watched(self, tensor: Tensor) -> Tensor:
        def read() -> np.ndarray:
            array = tensor.read().copy()
            self.now += array.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(array, self._gone, array.nbytes)
            return array

        return Tensor(tensor.shape, tensor.dtype, read)

    def _gone(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("format", ["hf", "gemma", "run"])
def test_what_was_written_is_let_go(format, tmp_path, monkeypatch):
    parcel = 10_000
    monkeypatch.setattr(safetensors_files, "_SHARD_BYTES", parcel)
    monkeypatch.setattr(orbax_arrays, "_PARCEL_BYTES", parcel)
    weights, ledger = open_weights(str(FIXTURE)), Ledger()
    watched = {name: ledger.watched(tensor) for name, tensor in weights.tensors.items()}
    total = sum(tensor.bytes for tensor in watched.values())
    largest = max(tensor.bytes for tensor in watched.values())
    convert_weights(replace(weights, tensors=watched), str(tmp_path / "made"), format)
    assert largest <= ledger.most <= 2 * largest + parcel < total / 4


def abstract_weights(config: GemmaConfig, dtype: np.dtype) -> Weights:
    """A model's tensors, which nobody may read."""
    tensors = {}
    for parameter in parameters(config):
        shape = shape_of(parameter.axes, config.sizes)
        for layer in range(config.layers if "{}" in parameter.name else 1):
            tensors[parameter.name.format(layer)] = Tensor(shape, dtype, NotImplemented)
    return Weights(source="nowhere", format="hf", config=config, tensors=tensors)


@pytest.mark.parametrize(
    ("config", "table", "of_a_run"),
    [
        (GEMMA3_4B, 1.34, 1.34),
        (GEMMA3_12B, 2.01, 2.01),
        (GEMMA3_27B, 2.82, 2.82),
        (GEMMA1_7B, 1.57, 4.23),
        (GEMMA2_9B, 1.84, 2.16),
        (GEMMA2_27B, 2.36, 7.81),
    ],
)
def test_the_largest_tensors_are_those_of_the_documentation(config, table, of_a_run):
    weights = abstract_weights(config, BFLOAT16)
    for format in ("hf", "gguf"):
        tensors = from_ours(weights.tensors, config, format)
        assert max(tensor.bytes for tensor in tensors.values()) / 1e9 == pytest.approx(
            table, abs=5e-3
        )
    leaves = stacked(weights.tensors, config)
    assert max(leaf.bytes for leaf in leaves.values()) / 1e9 == pytest.approx(of_a_run, abs=5e-3)


@pytest.fixture(scope="module")
def full_4b(tmp_path_factory) -> Path:
    """A Hugging Face folder of the shapes of Gemma 3 4B: random bfloat16, 7.8 GB in shards."""
    folder = tmp_path_factory.mktemp("full")
    config = replace(GEMMA3_4B, **LONG)
    tensors = from_ours(abstract_weights(config, BFLOAT16).tensors, config, "hf")
    random = np.random.default_rng(0)
    block = random.integers(0, 1 << 14, 1 << 24, dtype=np.uint16)  # below 2
    (folder / "config.json").write_text(json.dumps(write_config(config, "bfloat16", rows=262_144)))
    where, shard = {}, {}
    for name, tensor in tensors.items():
        drawn = np.resize(np.roll(block, int(random.integers(len(block)))), tensor.size)
        shard[name] = drawn.reshape(tensor.shape).view(ml_dtypes.bfloat16)
        if sum(array.nbytes for array in shard.values()) > 1 << 30 or name == list(tensors)[-1]:
            file = f"model-{len(where):05}.safetensors"
            save_file(shard, folder / file)
            where |= dict.fromkeys(shard, file)
            shard = {}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


PROGRAM = """
import sys
from gemma_train.commands import command_line
assert command_line.run(sys.argv[1:]) == 0
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


def peak_of_converting(source: Path, target: Path, format: str, tokenizer: Path) -> int:
    """The most bytes that were resident in a process which did nothing else."""
    words = ("convert", source, target, "--format", format, "--tokenizer", tokenizer)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


def stored(folder: Path) -> dict[str, bytes]:
    """The digest of every tensor in a folder's safetensors."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np", backend="pread") as opened:
            for name in opened.keys():  # noqa: SIM118
                found[name] = hashlib.sha256(opened.get_tensor(name).view(np.uint8)).digest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("through", ["run", "gemma"])
def test_4b_goes_through_every_format_within_its_bound(full_4b, tmp_path, tokenizer_file, through):
    bound = 2 * 262_144 * 2560 * 2 + 10**9
    peaks = {
        "there": peak_of_converting(full_4b, tmp_path / "there", through, tokenizer_file),
        "back": peak_of_converting(tmp_path / "there", tmp_path / "back", "hf", tokenizer_file),
        "gguf": peak_of_converting(full_4b, tmp_path / "x.gguf", "gguf", tokenizer_file),
    }
    print({name: f"{peak / bound:.2f} of the bound" for name, peak in peaks.items()})
    assert max(peaks.values()) <= bound
    assert stored(tmp_path / "back") == stored(full_4b)
