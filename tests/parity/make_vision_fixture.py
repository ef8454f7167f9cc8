"""A small random Gemma 3 of Hugging Face that sees images, and what transformers computes with it.

In the environment of make_fixtures.py, whose weights, loss and checks it shares:

    /tmp/torch/bin/python tests/parity/make_vision_fixture.py [folder]

Three rows: two images in one, one image amid packed documents in another, text alone in the third.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from make_fixtures import GLOBAL, LOCAL, TINY, VISIBLE, ropes
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

LENGTH, WORDS = 48, TINY["vocab_size"] - 2  # the last two are an image's start and end
START, END, SOFT = WORDS, WORDS + 1, WORDS + 2  # a soft token is no word
TOKENS = 9  # soft tokens of an image
# The documents of each row: runs of so many words, an image between two of them.
DOCUMENTS = (((3, 4, 5),), ((5,), (2, 6), (8,)), ((LENGTH,),))
IMAGES = 3
VISION = SiglipVisionConfig(
    image_size=24,
    patch_size=4,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=3,
    vision_use_head=False,
)
TEXT = Gemma3TextConfig(
    **TINY,
    num_hidden_layers=3,
    num_key_value_heads=2,
    layer_types=[LOCAL, GLOBAL, LOCAL],
    sliding_window=10,
    query_pre_attn_scalar=8,
    rope_parameters=ropes(1_000_000.0, rope_type="linear", factor=8.0),
)
CONFIG = Gemma3Config(
    text_config=TEXT,
    vision_config=VISION,
    mm_tokens_per_image=TOKENS,
    boi_token_index=START,
    eoi_token_index=END,
    image_token_index=SOFT,
)
# Changes of text and of vision, each of which must show in the logits.
MATTERS = (
    ("text_config", {"sliding_window": 9}),
    ("text_config", {"sliding_window": 11}),
    ("vision_config", {"hidden_act": "gelu_python"}),
    ("vision_config", {"layer_norm_eps": 1e-2}),
)


def random_model(config: Gemma3Config, seed: int) -> PreTrainedModel:
    """Weights so large that attention is sharp, norms and biases so random that each matters."""
    random = np.random.default_rng(seed)
    model = Gemma3ForConditionalGeneration(copy.deepcopy(config)).float().eval()
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        shape, mean = parameter.shape, 0.0
        deviation = 1.4 * float(np.prod(shape[1:])) ** -0.5
        if len(shape) == 1:
            of_encoder = "vision_tower" in name
            mean = 1.0 if of_encoder and "norm" in name and name.endswith("weight") else 0.0
            deviation = 0.3
            mean -= 2.0 if name.endswith("mlp.fc1.bias") else 0.0
        elif name.endswith(("embed_tokens.weight", "position_embedding.weight")):
            deviation = 0.5
        elif name.endswith("mm_input_projection_weight"):
            deviation = 2.0 * shape[0] ** -0.5
        # Together these two keep the units near -2, where the forms of gelu differ most.
        elif name.endswith("mlp.fc1.weight"):
            deviation *= 0.3
        elif name.endswith("mlp.fc2.weight"):
            deviation *= 8
        values = random.normal(mean, deviation, tuple(shape))
        parameter.data.copy_(torch.from_numpy(values))
    return model


def random_batch(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Token 0 is padding only; the image of each position is -1 where there is text."""
    rows = len(DOCUMENTS)
    tokens, positions, segments = np.zeros((3, rows, LENGTH), np.int32)
    index, image = np.full((rows, LENGTH), -1, np.int32), 0
    for row, documents in enumerate(DOCUMENTS):
        at = 0
        for number, runs in enumerate(documents, start=1):
            begun = at
            for run, words in enumerate(runs):
                if run:
                    soft = slice(at + 1, at + 1 + TOKENS)
                    tokens[row, at], tokens[row, soft], tokens[row, soft.stop] = START, SOFT, END
                    index[row, soft], image, at = image, image + 1, soft.stop + 1
                tokens[row, at : at + words] = random.integers(1, WORDS, words)
                at += words
            positions[row, begun:at] = np.arange(at - begun)
            segments[row, begun:at] = number
    assert image == IMAGES
    side = VISION.image_size
    return {
        "tokens": tokens,
        "positions": positions,
        "segments": segments,
        "image_index": index,
        "pixels": np.float32(random.uniform(-1, 1, (IMAGES, side, side, 3))),
    }


def logits_of(model: PreTrainedModel, batch: dict, *, causal: bool = False) -> torch.Tensor:
    """Each document goes through the model alone, with its images; logits of padding stay 0.

    A soft token sees all of its image only where the model is told of types: `causal` leaves it
    out.
    """
    tokens = torch.from_numpy(batch["tokens"]).long()
    pixels = torch.from_numpy(batch["pixels"]).permute(0, 3, 1, 2)
    logits = torch.zeros(*tokens.shape, TINY["vocab_size"])
    for row, segments in enumerate(batch["segments"]):
        for segment in range(1, segments.max() + 1):
            (places,) = np.nonzero(segments == segment)
            index = batch["image_index"][row, places]
            inputs = {"input_ids": tokens[row, places][None]}
            if (index >= 0).any():
                inputs["pixel_values"] = pixels[np.unique(index[index >= 0])]
            if not causal:
                inputs["token_type_ids"] = torch.from_numpy(index >= 0).long()[None]
            logits[row, places] = model(**inputs).logits[0]
    return logits


def loss_of(logits: torch.Tensor, batch: dict) -> torch.Tensor:
    """The mean over all tokens, no soft ones, that follow another of the same document."""
    segments = torch.from_numpy(batch["segments"])
    targets = torch.from_numpy(batch["tokens"]).long()[:, 1:]
    counted = (segments[:, :-1] == segments[:, 1:]) & (segments[:, :-1] > 0) & (targets != SOFT)
    return torch.nn.functional.cross_entropy(logits[:, :-1][counted], targets[counted])


def soft_tokens_of(model: PreTrainedModel, batch: dict) -> dict[str, np.ndarray]:
    """What becomes of the pixels, stage by stage."""
    projector = model.model.multi_modal_projector
    found = {}
    hooks = [
        projector.avg_pool.register_forward_hook(
            lambda _, inputs, pooled: found.update(pooled=pooled.flatten(2).transpose(1, 2))
        ),
        projector.mm_soft_emb_norm.register_forward_hook(
            lambda _, inputs, normed: found.update(normed=normed)
        ),
    ]
    pixels = torch.from_numpy(batch["pixels"]).permute(0, 3, 1, 2)
    found["hidden"] = model.model.vision_tower(pixel_values=pixels).last_hidden_state
    found["projected"] = projector(found["hidden"])
    for hook in hooks:
        hook.remove()
    return {name: value.numpy().copy() for name, value in found.items()}


def check(model: PreTrainedModel, folder: Path, batch: dict) -> None:
    """What was saved loads as the same model, and what tells it from others shows."""
    logits = logits_of(model, batch)
    again = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    assert torch.allclose(logits_of(again.float().eval(), batch), logits, rtol=0, atol=1e-4)

    def moves(what: str, others: torch.Tensor) -> None:
        moved = (others - logits).abs().max().item()
        print(f"{what} moves the logits by {moved:.1e}")
        assert moved > VISIBLE, what

    moves("a causal mask within images", logits_of(model, batch, causal=True))
    moves("a blank image", logits_of(model, {**batch, "pixels": batch["pixels"] * 0}))
    for part, change in MATTERS:
        config = copy.deepcopy(CONFIG)
        getattr(config, part).update(change)
        other = random_model(config, 0)
        other.load_state_dict(model.state_dict())
        moves(str(change), logits_of(other, batch))


def make(folder: Path) -> None:
    model, random = random_model(CONFIG, 11), np.random.default_rng([11, 1])
    batch = random_batch(random)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    found = {"versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}
    with torch.no_grad():
        check(model, folder, batch)
        found |= {**batch, **soft_tokens_of(model, batch)}
        found["logits"] = logits_of(model, batch).numpy()
    for parameter in model.model.vision_tower.parameters():
        parameter.requires_grad_(False)
    loss = loss_of(logits_of(model, batch), batch)
    loss.backward()
    found["loss"] = loss.detach().numpy()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[f"gradient/{name}"] = parameter.grad.numpy().copy()
    np.savez(folder / "reference.npz", **found)
    print(f"{folder.name}: {sum(file.stat().st_size for file in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "fixtures"
    make(target / "gemma3_vision")
