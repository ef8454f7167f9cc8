"""The bytes of the cache over ratio, window and context: `python -m benchmarks.cache_size`.

What figures 5 and 6 of the Gemma 3 report (arXiv 2503.19786) show, for Gemma 3 4B and counted in
closed form; tests/model/test_cache_size.py holds it to the sampler's arrays. `--write` puts the
tables into docs/long_context.md and draws docs/ablations/cache_size.svg. Seconds.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, replaced
from gemma_train.metrics.picture import colours, dress, pictured
from gemma_train.metrics.wording import byte_count
from gemma_train.model.cache_size import cache_bytes
from gemma_train.model.config import GemmaConfig
from gemma_train.model.flops import parameter_count
from gemma_train.model.sizes import GEMMA3_4B

PAGE, PICTURE = Path("docs/long_context.md"), Path("docs/ablations/cache_size.svg")
CONTEXTS = tuple(1024 * 2**power for power in range(8))
WINDOWS = (512, 1024, 2048, 4096)
RATIOS = {f"{local}:1": ("local",) * local + ("global",) for local in (1, 3, 5, 7)}
EVERYWHERE = replace(GEMMA3_4B, pattern=("global",), window=None)
LINES = {
    "all global": EVERYWHERE,
    "1:1, window 1,024": replace(GEMMA3_4B, pattern=RATIOS["1:1"]),
    "5:1, window 4,096": replace(GEMMA3_4B, window=4096),
    "5:1, window 1,024": GEMMA3_4B,
}


def share(config: GemmaConfig, length: int) -> str:
    """The cache of one row, and beside the model's own bytes in bfloat16."""
    size = cache_bytes(config, length)
    return f"{byte_count(size)} ({size / (2 * parameter_count(config)):.0%})"


def over_ratios() -> Iterator[list[str]]:
    """At 32,768 tokens, by local:global ratio and window."""
    yield ["all global", *[share(EVERYWHERE, 32_768)] * len(WINDOWS)]
    for name, pattern in RATIOS.items():
        of_ratio = replace(GEMMA3_4B, pattern=pattern)
        yield [name, *(share(replace(of_ratio, window=window), 32_768) for window in WINDOWS)]


def over_context() -> Iterator[list[str]]:
    """By context, for each of `LINES`."""
    for length in CONTEXTS:
        yield [f"{length:,}", *(share(config, length) for config in LINES.values())]


def draw(axes: Any) -> None:
    """Bytes against context, a line for each of `LINES`."""
    one = axes[0][0]
    for (name, config), colour in zip(LINES.items(), colours(len(LINES)), strict=True):
        sizes = [cache_bytes(config, length) / 1e9 for length in CONTEXTS]
        one.plot(CONTEXTS, sizes, color=colour, marker="o", markersize=3.5, label=name)
    one.set(xlabel="context (tokens)", ylabel="cache of one row (GB, bfloat16)")
    one.set_xscale("log", base=2)
    one.set_xticks(CONTEXTS, [f"{length // 1024}K" for length in CONTEXTS])
    dress(one, "Gemma 3 4B")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE} and {PICTURE}")
    write = parser.parse_args().write
    tables = {
        "cache by ratio": markdown(
            ["local:global", *(f"window {window:,}" for window in WINDOWS)], over_ratios()
        ),
        "cache by context": markdown(["context", *LINES], over_context()),
    }
    print(*tables.values(), sep="\n\n")
    if write:
        page = PAGE.read_text()
        for name, table in tables.items():
            page = replaced(page, name, table)
        PAGE.write_text(page)
        PICTURE.write_bytes(pictured("cache_size", draw)["cache_size.svg"])


if __name__ == "__main__":
    main()
