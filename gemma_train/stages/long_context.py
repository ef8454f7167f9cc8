"""The long-context stage: a finished run taken up at longer rows, its global RoPE slowed down.

Positions of global layers are divided by a factor (linear interpolation); local layers see no
further than their window and keep theirs. Source: Gemma 3 report (arXiv 2503.19786), on enabling
long context: from 32,768 to 131,072 tokens with factor 8 at the end of pretraining, from 4B up.
Tokens, learning rate and mixture are not in it.
"""

import math
from dataclasses import replace
from typing import Literal

from gemma_train.config import RunConfig
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.errors import require
from gemma_train.mesh import MeshConfig

FACTOR = 8.0  # the report's


def long_context(
    run: RunConfig,
    *,
    tokens: float,
    peak_lr: float,
    warmup_steps: int = 100,
    factor: float = FACTOR,
    length: int | None = None,
    batch_rows: int | None = None,
    documents: tuple[TokenSource, ...] = (),
    held_out: tuple[str, ...] = (),
    moments: Literal["fresh", "kept"] = "fresh",
    mesh: MeshConfig | None = None,
    folder: str = "",
) -> RunConfig:
    """`tokens` more tokens of `run`, from its newest checkpoint, in rows of `length` tokens.

    The factor of its global layers' RoPE is multiplied by `factor`; so are its context and its
    rows, unless a `length` is given for both. A step has as many tokens as before, as far as whole
    rows and the mesh allow, unless `batch_rows` says how many. `documents` are read beside the
    run's own sources, and `held_out` evaluated beside its own: for other texts, for those of
    `long_documents` are among its own already. The schedule is a new one, Adam's `moments` begin
    anew or are the run's. `mesh` and `folder` are the run's and <its>_long unless given. Raises
    `UserError` for a factor of at most 1, a length that is not longer than the run's, and a size
    that stays at 32,768 tokens as published (270M, 1B).
    """
    require(1 < factor < math.inf, f"factor is {factor:g}: it must be above 1, such as {FACTOR:g}")
    require(tokens > 0, f"tokens is {tokens:g}: it must be above 0, such as 20e9")
    mesh, data, was = mesh or run.mesh, run.data, run.model
    context = round(factor * was.context) if length is None else length
    require(
        context > was.context,
        f"length is {context}: it must be longer than the run's model.context, {was.context}",
    )
    row = round(factor * data.sequence_length) if length is None else length
    rows = _rows(run, mesh, row) if batch_rows is None else batch_rows
    mixture = replace(
        data, train=(*data.train, *documents), held_out=(*data.held_out, *held_out), batch_rows=rows
    )
    growth = row / data.sequence_length
    return replace(
        run,
        folder=folder or f"{run.folder}_long",
        model=replace(was, context=context, global_rope_factor=factor * was.global_rope_factor),
        data=_with_length(mixture, row),
        steps=round(tokens / (rows * row)),
        initial_weights=run.folder,
        initial_moments=moments,
        optimizer=replace(run.optimizer, peak_lr=peak_lr, warmup_steps=warmup_steps),
        mesh=mesh,
        evaluation=replace(run.evaluation, rows=max(1, round(run.evaluation.rows / growth))),
    )


def long_documents(recipe: Recipe, *, minimum_characters: int) -> Recipe:
    """The texts of `recipe` that are at least so long, in <its folder>_long, by its tokenizer.

    A document's content decides whether it is held out, so that it is on the same side in both.
    """
    tokenizer = recipe.tokenizer
    texts = [source for source in recipe.sources if isinstance(source, TextSource)]
    return replace(
        recipe,
        name=f"{recipe.name}_long",
        folder=f"{recipe.folder}_long",
        tokenizer=tokenizer if isinstance(tokenizer, str) else tokenizer.path,
        sources=tuple(replace(source, minimum_characters=minimum_characters) for source in texts),
        images=None,
    )


def _with_length(data: DataConfig, length: int) -> DataConfig:
    """The same in rows of `length` tokens, each with room for as many more images."""
    images = data.images
    if images is not None:
        images = replace(images, per_row=images.per_row * length // data.sequence_length)
    return replace(data, sequence_length=length, images=images)


def _rows(run: RunConfig, mesh: MeshConfig, length: int) -> int:
    """The most rows that are no more tokens than the run's step has and that the mesh divides."""
    parts = mesh.replica * mesh.data * run.accumulation
    return max(1, run.step_tokens // length // parts) * parts
