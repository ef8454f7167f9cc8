"""Small random Gemmas of Hugging Face, and what transformers computes with them, for the tests.

    python3.11 -m venv /tmp/torch
    /tmp/torch/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    /tmp/torch/bin/python tests/parity/make_fixtures.py [folder]

Weights and tokens come out the same on any machine, results but for their last bits.
"""

import copy
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

LOCAL, GLOBAL = "sliding_attention", "full_attention"
TINY = {
    "vocab_size": 96,
    "hidden_size": 40,  # in bfloat16, sqrt(40) is off by 0.2 %: a rounded scale shows
    "num_attention_heads": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "use_cache": False,
}


def ropes(global_base: float, **scaling) -> dict[str, dict]:
    """Rotary positions of the two kinds of layers of a Gemma 3."""
    return {
        LOCAL: {"rope_type": "default", "rope_theta": 10_000.0},
        GLOBAL: {"rope_type": "default", "rope_theta": global_base, **scaling},
    }


class Variant(NamedTuple):
    model: type[PreTrainedModel]
    config: PreTrainedConfig
    saved: dict  # what config.json must say, be it given above or derived by transformers
    matters: tuple[dict, ...]  # changes of the config, each of which must show in the logits
    keep_steps: bool = False  # record the parameters after the steps of SGD
    shard: str = "1GB"  # largest file of weights


VARIANTS = {
    "gemma1_mqa": Variant(
        GemmaForCausalLM,
        GemmaConfig(
            **{**TINY, "head_dim": 16, "intermediate_size": 56},
            num_hidden_layers=2,
            num_key_value_heads=1,
        ),
        saved={
            "model_type": "gemma",
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        matters=({"hidden_act": "gelu_python"},),
    ),
    "gemma1_mha": Variant(
        GemmaForCausalLM,
        GemmaConfig(**TINY, num_hidden_layers=3, num_key_value_heads=4),
        saved={
            "model_type": "gemma",
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        matters=({"hidden_act": "gelu_python"},),
    ),
    "gemma2_gqa": Variant(
        Gemma2ForCausalLM,
        Gemma2Config(
            **TINY,
            num_hidden_layers=4,
            num_key_value_heads=2,
            sliding_window=5,
            query_pre_attn_scalar=5,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=5.0,
        ),
        saved={
            "model_type": "gemma2",
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": [LOCAL, GLOBAL, LOCAL, GLOBAL],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        matters=(
            {"hidden_activation": "gelu_python"},
            {"sliding_window": 4},
            {"sliding_window": 6},
            {"query_pre_attn_scalar": 8},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
        ),
        keep_steps=True,
    ),
    "gemma3_long": Variant(
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **TINY,
            num_hidden_layers=8,
            num_key_value_heads=2,
            sliding_window=5,
            query_pre_attn_scalar=5,
            rope_parameters=ropes(1_000_000.0, rope_type="linear", factor=8.0),
        ),
        saved={
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": [*[LOCAL] * 5, GLOBAL, LOCAL, LOCAL],
            "rope_parameters": ropes(1_000_000.0, rope_type="linear", factor=8.0),
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        matters=(
            {"hidden_activation": "gelu_python"},
            {"sliding_window": 4},
            {"sliding_window": 6},
            {"query_pre_attn_scalar": 8},
            {"rope_parameters": ropes(1_000_000.0)},
            {"rope_parameters": ropes(10_000.0, rope_type="linear", factor=8.0)},
        ),
        keep_steps=True,
        shard="100KB",
    ),
    "gemma3_mqa": Variant(
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **TINY,
            num_hidden_layers=7,
            num_key_value_heads=1,
            sliding_window=4,
            query_pre_attn_scalar=8,
        ),
        saved={
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": [*[LOCAL] * 5, GLOBAL, LOCAL],
            "rope_parameters": ropes(1_000_000.0),
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        matters=(
            {"hidden_activation": "gelu_python"},
            {"sliding_window": 3},
            {"sliding_window": 5},
            {"rope_parameters": ropes(10_000.0)},
        ),
    ),
}

LENGTH = 32
DOCUMENTS = {  # lengths of the documents in each row; the rest of a row is padding
    "plain": ((32,), (32,)),
    "packed": ((9, 1, 14, 8), (3, 17, 7)),
}
LEARNING_RATE = 0.03
VISIBLE = 5e-3  # least change of some logit that a test tells from noise


def random_model(variant: Variant, seed: int) -> PreTrainedModel:
    """Weights so large that attention is sharp, and norms so random that each matters."""
    random = np.random.default_rng(seed)
    model = variant.model(copy.deepcopy(variant.config)).float().eval()
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        mean, deviation = 0.0, 1.4 * parameter.shape[-1] ** -0.5
        if name.endswith("norm.weight"):
            deviation = 0.3
        # Together these two keep the gates below 0, where the forms of gelu differ most.
        elif name.endswith("embed_tokens.weight"):
            mean, deviation = 0.2, 0.4
        elif name.endswith("gate_proj.weight"):
            mean, deviation = -0.1, parameter.shape[-1] ** -0.5
        elif name.endswith("up_proj.weight"):
            deviation *= 4  # makes up for gates near 0
        values = random.normal(mean, deviation, parameter.shape)
        parameter.data.copy_(torch.from_numpy(values))
    return model


def random_batch(rows: tuple[tuple[int, ...], ...], random: np.random.Generator) -> dict:
    """Token 0 is padding only: transformers gives it no gradient as an input."""
    tokens, positions, segments = np.zeros((3, len(rows), LENGTH), np.int32)
    for row, lengths in enumerate(rows):
        end = sum(lengths)
        tokens[row, :end] = random.integers(1, TINY["vocab_size"], end)
        positions[row, :end] = np.concatenate([np.arange(length) for length in lengths])
        segments[row, :end] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    return {"tokens": tokens, "positions": positions, "segments": segments}


def logits_of(model: PreTrainedModel, batch: dict) -> torch.Tensor:
    """Each document goes through the model alone; logits of padding stay 0."""
    tokens = torch.from_numpy(batch["tokens"]).long()
    logits = torch.zeros(*tokens.shape, TINY["vocab_size"])
    for row, segments in enumerate(batch["segments"]):
        for segment in range(1, segments.max() + 1):
            (places,) = np.nonzero(segments == segment)
            logits[row, places] = model(input_ids=tokens[row, places][None]).logits[0]
    return logits


def loss_of(logits: torch.Tensor, batch: dict) -> torch.Tensor:
    """The mean over all tokens that another of the same document follows."""
    segments = torch.from_numpy(batch["segments"])
    counted = (segments[:, :-1] == segments[:, 1:]) & (segments[:, :-1] > 0)
    targets = torch.from_numpy(batch["tokens"]).long()[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1][counted], targets[counted])


def gradients_of(model: PreTrainedModel, batch: dict) -> dict[str, np.ndarray]:
    """By parameter; the table's is of both its uses."""
    model.zero_grad()
    loss_of(logits_of(model, batch), batch).backward()
    return {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}


def two_steps(model: PreTrainedModel, batch: dict) -> list[float]:
    """Change the model by two steps of SGD; the losses before, between and after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(2):
        loss = loss_of(logits_of(model, batch), batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        losses.append(loss_of(logits_of(model, batch), batch).item())
    assert losses[1] < losses[0] - 0.05 and losses[2] < losses[1] - 0.05, losses
    return losses


def save(model: PreTrainedModel, variant: Variant, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size=variant.shard)
    (folder / "generation_config.json").unlink(missing_ok=True)  # nothing generates here
    saved = json.loads((folder / "config.json").read_text())
    expected = {"tie_word_embeddings": True, "attention_bias": False, **variant.saved}
    for name, value in expected.items():
        assert saved[name] == value, f"{folder}: {name} is {saved[name]}, not {value}"
    assert not saved.get("use_bidirectional_attention"), folder


def check(model: PreTrainedModel, variant: Variant, folder: Path, batches: dict) -> None:
    """What was saved loads as the same model, and what tells it from others shows."""
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for kind, batch in batches.items():
        logits = logits_of(model, batch)
        # Not exactly: weights read from a file lie unaligned in memory, and sum in another order.
        assert torch.allclose(logits_of(again, batch), logits, rtol=0, atol=1e-4), folder
        for change in variant.matters:
            config = copy.deepcopy(variant.config)
            config.update(change)
            other = random_model(variant._replace(config=config), 0)
            other.load_state_dict(model.state_dict())
            moved = (logits_of(other, batch) - logits).abs().max().item()
            assert moved > VISIBLE, f"{folder}: {change} moves the {kind} logits by {moved:.1e}"


def make(name: str, variant: Variant, folder: Path, seed: int) -> None:
    model, random = random_model(variant, seed), np.random.default_rng([seed, 1])
    batches = {kind: random_batch(rows, random) for kind, rows in DOCUMENTS.items()}
    found = {"versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}
    save(model, variant, folder)
    with torch.no_grad():
        check(model, variant, folder, batches)
        for kind, batch in batches.items():
            logits = logits_of(model, batch)
            results = {**batch, "logits": logits.numpy(), "loss": loss_of(logits, batch).numpy()}
            found |= {f"{kind}/{key}": value for key, value in results.items()}
    for key, gradient in gradients_of(model, batches["packed"]).items():
        found[f"packed/gradient/{key}"] = gradient
    found["sgd/learning_rate"] = np.float32(LEARNING_RATE)
    found["sgd/losses"] = np.float32(two_steps(model, batches["packed"]))
    if variant.keep_steps:
        for key, parameter in model.named_parameters():
            found[f"sgd/parameter/{key}"] = parameter.detach().numpy()
    np.savez(folder / "reference.npz", **found)
    print(f"{name}: {sum(file.stat().st_size for file in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "fixtures"
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        make(name, variant, target / name, seed)
