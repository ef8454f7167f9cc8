"""Small whole samples of what models and runs are read from, each the same whenever it is made."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import load_file, save_file

from gemma_train import config as configs
from gemma_train.checkpoints.packing import PLACES, Place
from gemma_train.checkpoints.seal import seal
from gemma_train.config import (
    DataConfig,
    Distillation,
    EvaluationConfig,
    GemmaConfig,
    ImageRows,
    RunConfig,
    Stored,
    TokenSource,
    TopK,
    VisionConfig,
)
from gemma_train.conversion import (
    encoder_folder,
    encoder_record,
    gemma_orbax,
    gguf_file,
    huggingface,
    orbax_arrays,
    run_folder,
)
from gemma_train.conversion.names import parameters
from gemma_train.conversion.tensors import Tensor, Tensors, Weights
from gemma_train.run_files import CAPTIONS, CHECKPOINTS, METRICS, RECORD, SAMPLE, SUMMARY
from tests.fuzz.samples_of_data import HEAD, tokenizer

VISION = VisionConfig(side=12, patch=3, width=6, layers=1, heads=2, hidden=5, tokens=4)
TEXT_MODEL = GemmaConfig(
    vocabulary=280,
    width=4,
    layers=7,
    query_heads=2,
    key_value_heads=1,
    head_dimension=2,
    hidden=3,
    context=64,
    pattern=("local",) * 5 + ("global",),
    window=7,
    query_key_norm=True,
    post_norms=True,
    global_rope_base=1_000_000.0,
)
SMALL_MODEL = replace(TEXT_MODEL, layers=2, pattern=("local", "global"))
MODEL = replace(SMALL_MODEL, vision=VISION)
RUN = RunConfig(
    folder="runs/example",
    model=MODEL,
    data=DataConfig(
        tokenizer="tokenizer.model",
        train=(TokenSource(path="data/a", weight=0.5), TokenSource(path="data/b", taught=False)),
        held_out=("data/c",),
        images=ImageRows(store="data/images"),
        sequence_length=64,
    ),
    loss=Distillation(
        teacher=Stored(folder="targets", weights="runs/large"),
        sampler=TopK(candidates=8),
        hard_label_weight=0.25,
    ),
    evaluation=EvaluationConfig(captions=2),
    steps=100,
)


def run_record(folder: Path) -> None:
    (folder / RECORD).write_text(configs.record(RUN))


def model_record(folder: Path) -> None:
    (folder / gemma_orbax.RECORD).write_text(configs.record(MODEL))


def seen_encoder(folder: Path) -> None:
    encoder_record.write(str(folder), HEAD)


def hugging_face(folder: Path) -> None:
    """Weights that see images, in one file."""
    huggingface.write(weights(MODEL), epath.Path(folder), _silent)


def hugging_face_shards(folder: Path) -> None:
    """Weights of text in two files and an index."""
    huggingface.write(weights(SMALL_MODEL), epath.Path(folder), _silent)
    whole = folder / "model.safetensors"
    tensors, where = load_file(whole), {}
    names = sorted(tensors)
    for number, some in enumerate((names[:5], names[5:]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({one: tensors[one] for one in some}, folder / name)
        where |= dict.fromkeys(some, name)
    whole.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def encoder(folder: Path) -> None:
    """A vision encoder by itself."""
    encoder_folder.write(tensors_of(VISION), VISION, epath.Path(folder), _silent)


def gguf(folder: Path) -> None:
    """A model as llama.cpp takes it, with its vocabulary."""
    file = tokenizer(folder)
    made = replace(weights(TEXT_MODEL), tokenizer=str(file), source="made")
    gguf_file.write(made, epath.Path(folder / "some.gguf"), _silent)
    file.unlink()


def arrays(folder: Path) -> None:
    """Two arrays in a checkpoint, in one of which two leaves are packed; what is beside them."""
    random, packed = np.random.default_rng(0), "packed/float32"
    made = {"a/w": random.standard_normal((4, 3)), packed: np.arange(5, dtype=np.float32)}
    tensors = {name: _in_memory(array) for name, array in made.items()}
    places = {
        "b": Place(array=packed, begin=0, shape=(2, 2)),
        "c": Place(array=packed, begin=4, shape=()),
    }
    metadata: dict[str, Any] = {PLACES: {name: asdict(place) for name, place in places.items()}}
    metadata |= {"position": {"next_row": 8, "returns": 1}, "digest": "0f"}
    metadata |= {"versions": {"jax": "0.12.0"}, "config": configs.record(RUN)}
    orbax_arrays.save(epath.Path(folder / "arrays"), tensors, _silent, metadata=metadata)


def orbax(folder: Path) -> None:
    """A folder as the gemma library has it, with its record."""
    gemma_orbax.write(weights(replace(SMALL_MODEL, layers=1)), epath.Path(folder), _silent)


def run(folder: Path) -> None:
    """A run that has taken no step."""
    small = replace(SMALL_MODEL, layers=1)
    run_folder.write(weights(small), epath.Path(folder), _silent, name="runs/made")


def weights(config: GemmaConfig) -> Weights:
    """Random weights in memory."""
    return Weights(source="nowhere", format="none", config=config, tensors=tensors_of(config))


def tensors_of(config: GemmaConfig | VisionConfig) -> Tensors:
    """Random parameters by our names."""
    random = np.random.default_rng(0)
    return {
        name: _in_memory(random.standard_normal(parameter.shape, np.float32))
        for parameter in parameters(config)
        for name in parameter.names
    }


def metrics(folder: Path) -> None:
    """What a run wrote of some steps."""
    lines = [
        {
            "step": step,
            "time": 1_790_000_000.0 + step,
            "kind": "train",
            "loss": 3.0 / step,
            "gradient_norm": 1.0 if step % 3 else "nan",
            "tokens_per_second": 1e4,
            "seconds_per_step": 0.5,
        }
        for step in range(1, 7)
    ]
    lines.insert(4, {"step": 4, "time": 1_790_000_004.5, "kind": "evaluation", "loss": 1.0})
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def figures(folder: Path) -> None:
    """What a finished run left: metrics and figures."""
    metrics(folder)
    summary = {"held_out_loss": 1.5, "unigram_entropy": 6.5, "tokens": 40_000, "device": "cpu"}
    (folder / SUMMARY).write_text(json.dumps(summary))


def report(folder: Path) -> None:
    """All that a report shows."""
    figures(folder)
    run_record(folder)
    (folder / SAMPLE).write_text("once upon a time")
    caption = {"image": "ab" * 32, "caption": "a cat", "said": "a dog", "right": False}
    (folder / CAPTIONS).write_text(json.dumps([{**caption, "picture": "aGVsbG8="}]))


def _in_memory(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


def _silent(count: int) -> None:
    """Nobody is told how far the writing is."""


def sealed(folder: Path) -> None:
    """Two checkpoints' worth of files, sealed by two processes; Orbax reads none of them."""
    for step in (3, 12):
        place = folder / CHECKPOINTS / str(step)
        for name in ("_CHECKPOINT_METADATA", "state/d/a", "state/ocdbt.process_1/d/b"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(name.encode() * step)
        for process in (0, 1):
            seal(epath.Path(place), process, 2)
