"""Whether transformers loads what `gemma-train convert` wrote, unchanged, and computes the same.

Export the fixtures, with a tokenizer beside them (any SentencePiece model of ours will do), then
check them with the Python of make_fixtures.py, which needs sentencepiece, protobuf and pillow as
well:

    for name in gemma1_mqa gemma1_mha gemma2_gqa gemma3_long gemma3_mqa gemma3_vision; do
        gemma-train convert tests/parity/fixtures/$name /tmp/exports/$name --format hf \\
            --tokenizer tokenizer.model
    done
    /tmp/torch/bin/python tests/parity/check_exports.py /tmp/exports/*

The logits are held to the reference.npz of the fixture with the folder's name, the tokenizer's ids
to SentencePiece's, and what a processor makes of text and an image to what Gemma writes for one. A
folder of an encoder alone (a run's encoder/, what `save_encoder` wrote) is held to its states:

    gemma-train convert tests/parity/fixtures/gemma3_vision /tmp/exports/run --format run
    mv /tmp/exports/run/encoder /tmp/exports/encoder

Exits with 1 where logits differ by more than 5e-4 or a single id does.
"""

import json
import sys
from pathlib import Path
from typing import Any

import make_vision_fixture
import numpy as np
import sentencepiece
import torch
import transformers
from make_fixtures import logits_of
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    SiglipVisionModel,
)

FIXTURES = Path(__file__).parent / "fixtures"
ALLOWED = 5e-4
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
TEXTS = (
    "",
    " ",
    "Hello, world!",
    " leading and trailing ",
    "two  three   and  four    spaces",
    "     " * 13,
    "lines\nand\n\nlines\n\n\n\n",
    "\n",
    "\n" * 40,
    "tabs\tand\t\ttabs",
    "a\r\nb",
    "12345.678e-90 and 2026",
    "def main(path: str) -> None:\n    with open(path) as file:\n        return file.read()\n",
    "Grüße aus Köln, où l'été naît",
    "日本語のテキスト и русский текст",
    "emoji 🙂 and 👩‍👩‍👧 joined",
    "\u0301 combining, \u200b zero width, \ufffd replaced",
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "<unused7><mask>[multimodal]<start_of_image>",
    "<table><b>tags</b></table> <not_a_tag>",
)


def loaded(kind: Any, folder: Path) -> Any:
    """A model of which nothing is missing, and nothing was left over."""
    model, told = kind.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    for problem, names in told.items():
        assert not names, f"{folder}: {problem}: {names}"
    return model.float().eval()


def largest_difference(folder: Path) -> float:
    """Of the logits from those that transformers computed from the weights we imported."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    if model_type in ("gemma3", "siglip_vision_model"):
        return largest_difference_with_images(folder, model_type)
    reference = np.load(FIXTURES / folder.name / "reference.npz")
    model, worst = loaded(AutoModelForCausalLM, folder), 0.0
    for kind in ("plain", "packed"):
        batch = {key: reference[f"{kind}/{key}"] for key in ("tokens", "positions", "segments")}
        with torch.no_grad():
            difference = logits_of(model, batch).numpy() - reference[f"{kind}/logits"]
        worst = max(worst, float(np.abs(difference).max()))
    return worst


def largest_difference_with_images(folder: Path, model_type: str) -> float:
    """The same of a model that sees images; of an encoder alone, of its last states."""
    batch = dict(np.load(FIXTURES / "gemma3_vision" / "reference.npz"))
    with torch.no_grad():
        if model_type == "siglip_vision_model":
            pixels = torch.from_numpy(batch["pixels"]).permute(0, 3, 1, 2)
            found = loaded(SiglipVisionModel, folder)(pixel_values=pixels).last_hidden_state
            return float(np.abs(found.numpy() - batch["hidden"]).max())
        model = loaded(AutoModelForImageTextToText, folder)
        soft = model.config.image_token_id
        tokens = np.where(batch["image_index"] >= 0, soft, batch["tokens"])
        found = make_vision_fixture.logits_of(model, {**batch, "tokens": tokens}).numpy()
    return float(np.abs(found - batch["logits"]).max())


def wrong_images(folder: Path) -> list[str]:
    """What of a processor's work is not as Gemma writes an image, and scales its pixels."""
    processor = AutoProcessor.from_pretrained(folder)
    keys = json.loads((folder / "config.json").read_text())
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    side, count = keys["vision_config"]["image_size"], keys["mm_tokens_per_image"]
    image = Image.fromarray(np.full((2 * side, 3 * side, 3), 51, np.uint8))
    found = processor(images=image, text="see <start_of_image> here", return_tensors="np")
    start, end, soft = (keys[f"{name}_token_index"] for name in ("boi", "eoi", "image"))
    newlines = ours.encode("\n\n")
    expected = [ours.bos_id(), *ours.encode("see "), *newlines, start, *[soft] * count, end]
    expected += [*newlines, *ours.encode(" here")]
    wrong = []
    if found["input_ids"][0].tolist() != expected:
        wrong.append(f"ids {found['input_ids'][0].tolist()}, not {expected}")
    if (found["token_type_ids"][0] != (np.array(expected) == soft)).any():
        wrong.append("token_type_ids")
    pixels = found["pixel_values"]
    if pixels.shape != (1, 3, side, side) or np.abs(pixels - (51 / 127.5 - 1)).max() > 1e-6:
        wrong.append(f"pixels {pixels.shape}, the first {pixels.ravel()[0]}")
    return wrong


def wrong_texts(folder: Path) -> list[str]:
    """Texts that the exported tokenizer takes apart otherwise than SentencePiece does."""
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    theirs = AutoTokenizer.from_pretrained(folder)
    told = GenerationConfig.from_pretrained(folder)
    for name, index in zip(SPECIAL, (ours.pad_id(), ours.bos_id(), ours.eos_id()), strict=True):
        found = (getattr(theirs, name), getattr(told, name))
        assert found == (index, index), f"{folder}: {name} is {found}, not {index}"
    return [text for text in TEXTS if theirs(text).input_ids != [ours.bos_id(), *ours.encode(text)]]


def check(folder: Path) -> bool:
    difference = largest_difference(folder)
    line = f"{folder.name}: logits differ by at most {difference:.1e}"
    wrong: list[str] = []
    if (folder / "tokenizer.model").exists():
        wrong = wrong_texts(folder)
        line += f"; {len(TEXTS) - len(wrong)} of {len(TEXTS)} texts have the same ids"
    if (folder / "processor_config.json").exists() and (folder / "tokenizer.model").exists():
        of_images = wrong_images(folder)
        wrong += of_images
        line += "" if of_images else "; its processor writes an image as Gemma does"
    print(line + "".join(f"\n  not {text!r}" for text in wrong))
    return difference <= ALLOWED and not wrong


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    results = [check(Path(folder)) for folder in sys.argv[1:]]
    sys.exit(0 if results and all(results) else 1)
