"""The shapes at which our step is compiled beside MaxText's, and the figures to hold it against.

MaxText 0.2.5 was compiled by the same libtpu for the same topologies: as many tokens a chip, Adam
in float32, full remat. The sketch is what this repository's step was drawn up from. GB are 10^9.
"""

from dataclasses import dataclass, replace

from gemma_train.config import MeshConfig, RunConfig, load
from gemma_train.model.config import GemmaConfig
from gemma_train.model.sizes import GEMMA3_4B, GEMMA3_12B, GEMMA3_27B
from gemma_train.stages.pretrain import pretraining

TABLE_2 = ("gemma3_1b", "gemma3_4b", "gemma3_12b", "gemma3_27b")
LONG = ("gemma3_4b_long", "gemma3_12b_long", "gemma3_27b_long")  # 131,072 tokens


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one step: GB of one chip."""

    peak: float
    all_gather: float
    reduce_scatter: float
    all_reduce: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, what others made of it, and what ours may take."""

    title: str
    config: RunConfig
    maxtext: Figures
    sketch: Figures
    peak_limit: float  # GB
    all_gather_limit: float | None = None  # GB; None: by the share below


def _run(
    name: str, model: GemmaConfig, topology: str, *, length: int, rows: int, data: int, seq: int = 1
) -> RunConfig:
    """A run of the shape: its tokens and rates play no part in what is compiled."""
    return pretraining(
        name,
        replace(model, context=length),
        tokens=1e12,
        batch_rows=rows,
        mesh=MeshConfig(data=data, seq=seq, topology=topology),
        peak_lr=1e-4,
    )


CASES = {
    "A": Case(
        title="4B, v5e 16x16, 8,192 x 256 rows, all data",
        config=_run("case_a", GEMMA3_4B, "v5e:16x16", length=8192, rows=256, data=256),
        maxtext=Figures(peak=9.69, all_gather=15.8, reduce_scatter=0.0, all_reduce=10.8),
        sketch=Figures(peak=3.01, all_gather=14.5, reduce_scatter=7.4, all_reduce=0.2),
        peak_limit=3.5,
    ),
    "B": Case(
        title="4B, v5e 16x16, 32,768 x 64 rows, data 64 x seq 4",
        config=_run("case_b", GEMMA3_4B, "v5e:16x16", length=32_768, rows=64, data=64, seq=4),
        maxtext=Figures(peak=10.00, all_gather=24.7, reduce_scatter=2.3, all_reduce=14.4),
        sketch=Figures(peak=3.22, all_gather=15.8, reduce_scatter=7.6, all_reduce=0.8),
        peak_limit=3.7,
        all_gather_limit=16.0,
    ),
    "C": Case(
        title="12B, v4:4x4x8, 8,192 x 128 rows, all data",
        config=_run("case_c", GEMMA3_12B, "v4:4x4x8", length=8192, rows=128, data=128),
        maxtext=Figures(peak=12.46, all_gather=63.5, reduce_scatter=0.0, all_reduce=23.5),
        sketch=Figures(peak=8.33, all_gather=47.1, reduce_scatter=23.9, all_reduce=0.5),
        peak_limit=9.0,
    ),
    "D": Case(
        title="27B, v5p:4x4x8, 8,192 x 128 rows, all data",
        config=_run("case_d", GEMMA3_27B, "v5p:4x4x8", length=8192, rows=128, data=128),
        maxtext=Figures(peak=23.36, all_gather=146.7, reduce_scatter=0.0, all_reduce=54.0),
        sketch=Figures(peak=16.87, all_gather=110.7, reduce_scatter=55.5, all_reduce=1.1),
        peak_limit=17.5,
    ),
}

# Shares of the bf16 weights, once.
ALL_GATHER_LIMIT = 2.1
REDUCE_SCATTER_LIMIT = 1.05
ALL_REDUCE_LIMIT = 0.02


def config_of(name: str, layers: int | None) -> RunConfig:
    """The run of a case or of a row of Table 2; with `layers`, that many, both kinds by turns."""
    config = CASES[name].config if name in CASES else load(f"configs/{name}.py")
    if layers is None:
        return config
    model = replace(config.model, layers=layers, pattern=("local", "local", "global"))
    return replace(config, model=model)
