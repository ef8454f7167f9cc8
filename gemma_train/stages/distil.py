"""Distillation: the same run, taught by another model's distribution instead of the text alone."""

from dataclasses import replace

from gemma_train.config import RunConfig
from gemma_train.losses.distillation import Distillation, Online, Stored
from gemma_train.samplers import Sampler, TopK

GEMMA = TopK(candidates=256)  # what the report keeps, in its plainest reading


def distilled(
    run: RunConfig, teacher: Online | Stored, *, sampler: Sampler = GEMMA, folder: str = ""
) -> RunConfig:
    """`run` with the loss of Gemma 2 and 3's report: 256 candidates a token, and no hard label.

    All else stays: data, tokens, schedule, z-loss; a chunk of the loss holds targets too, and is
    not longer than `Distillation`'s. A `folder` of its own keeps the two runs apart.
    """
    chunk = min(run.loss.chunk, Distillation.chunk)
    loss = Distillation(teacher=teacher, sampler=sampler, z_loss=run.loss.z_loss, chunk=chunk)
    return replace(run, loss=loss, folder=folder or f"{run.folder}_distilled")
