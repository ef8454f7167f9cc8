"""Made-up text that a long context helps with, and a model of minutes can learn from.

Each document sings 850 verses, about 5,000 tokens, from a book of its own: 2 to 64 verses of five
words, drawn again and again. What is ahead of a verse says how it goes on if it was sung before,
and nothing else does: the more of the document is in sight, the more verses have been heard.
docs/long_context.md.
"""

import itertools
import json
import math
import random
from pathlib import Path

from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.storage import path, write_whole
from gemma_train.tokenizer.training import TokenizerConfig

FOLDER = "data/verses"
TEXTS = f"{FOLDER}/verses.jsonl"
DOCUMENTS, VERSES, BOOK = 500, 850, (2, 64)
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
PAIRS = itertools.product(SYLLABLES[:30], SYLLABLES[30:])
WORDS = ["".join(pair) for pair in PAIRS][::7][:128]


def document(seed: int) -> str:
    """Verses drawn from a book whose size is drawn evenly in its logarithm."""
    draw = random.Random(seed)
    size = round(math.exp(draw.uniform(*map(math.log, BOOK))))
    book = [" ".join(draw.choices(WORDS, k=5)) for _ in range(size)]
    return "".join(f" {verse}\n" for verse in draw.choices(book, k=VERSES))


if not Path(TEXTS).exists():
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": document(seed)}) + "\n" for seed in range(DOCUMENTS)]
    write_whole(path(TEXTS), "".join(lines))

recipe = Recipe(
    name="verses",
    folder=FOLDER,
    tokenizer=TokenizerConfig(
        path=f"{FOLDER}/tokenizer.model", vocabulary=640, maximum_training_bytes=2_000_000
    ),
    sources=(
        TextSource(
            name="verses",
            files=(TEXTS,),
            licence="CC0-1.0",
            format="jsonl",
            held_out_fraction=0.1,
        ),
    ),
)
