"""Whether transformers loads what `gemma-train convert` wrote, unchanged, and computes the same.

Export the fixtures, with a tokenizer beside them (any SentencePiece model of ours will do), then
check them with the Python of make_fixtures.py, which needs sentencepiece and protobuf as well:

    for name in gemma1_mqa gemma1_mha gemma2_gqa gemma3_long gemma3_mqa; do
        gemma-train convert tests/parity/fixtures/$name /tmp/exports/$name --format hf \\
            --tokenizer tokenizer.model
    done
    /tmp/torch/bin/python tests/parity/check_exports.py /tmp/exports/*

The logits are held to the reference.npz of the fixture with the folder's name, the tokenizer's ids
to SentencePiece's. Exits with 1 where logits differ by more than 5e-4 or a single id does.
"""

import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
from make_fixtures import logits_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

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


def largest_difference(folder: Path) -> float:
    """Of the logits from those that transformers computed from the weights we imported."""
    reference = np.load(FIXTURES / folder.name / "reference.npz")
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    for kind, names in told.items():
        assert not names, f"{folder}: {kind}: {names}"
    worst = 0.0
    for kind in ("plain", "packed"):
        batch = {key: reference[f"{kind}/{key}"] for key in ("tokens", "positions", "segments")}
        with torch.no_grad():
            difference = (
                logits_of(model.float().eval(), batch).numpy() - reference[f"{kind}/logits"]
            )
        worst = max(worst, float(np.abs(difference).max()))
    return worst


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
    print(line + "".join(f"\n  not {text!r}" for text in wrong))
    return difference <= ALLOWED and not wrong


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    results = [check(Path(folder)) for folder in sys.argv[1:]]
    sys.exit(0 if results and all(results) else 1)
