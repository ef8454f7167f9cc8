"""Cross-entropy against a teacher's distribution, kept as a few hundred candidates a position.

The student's softmax runs over the whole vocabulary: what the teacher did not keep has target zero
and is pushed down (Gemma 2, arXiv 2408.00118, section 3.2; Gemma 3, arXiv 2503.19786, section 2.2).
The candidates come with the batch from a store, or from a teacher that runs in the step: the loss
does not know which.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from gemma_train.data.example import Batch
from gemma_train.errors import require
from gemma_train.kernels.vocabulary.candidates import draw
from gemma_train.kernels.vocabulary.loss import LossTerms, Targets, vocabulary_loss
from gemma_train.losses.states import final_states
from gemma_train.model import Gemma
from gemma_train.model.config import GemmaConfig
from gemma_train.samplers import Sampler, TopK


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A teacher that ran beforehand: `gemma-train teacher` writes its targets to a folder."""

    folder: str  # the store, such as data/teachers/large
    weights: str  # what the teacher is: a run, Hugging Face or gemma folder
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of its parameters and arithmetic

    def __post_init__(self) -> None:
        for name in ("folder", "weights"):
            require(bool(getattr(self, name)), f"loss.teacher.{name} is empty: name a folder")


@dataclass(frozen=True, kw_only=True)
class Online:
    """A teacher whose forward pass is part of the step."""

    weights: str  # a run, Hugging Face or gemma folder
    step: int | None = None  # of a run; its newest if not given
    model: GemmaConfig | None = None  # what is in it, where the folder is not at hand to tell
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of its parameters and arithmetic
    sharding: Literal["split", "whole"] = "split"  # as the student's, or a copy on every device

    def __post_init__(self) -> None:
        require(bool(self.weights), "loss.teacher.weights is empty: name a folder with a model")
        require(
            not isinstance(self.step, int) or self.step >= 0,
            f"loss.teacher.step is {self.step}: it must be 0 or more",
        )


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Train on a teacher's distribution."""

    teacher: Stored | Online
    sampler: Sampler = TopK()  # which of the teacher's tokens are kept, and how they weigh
    seed: int = 0  # of the sampler's draws
    temperature: float = 1.0  # divides both models' logits; the loss is multiplied by its square
    hard_label_weight: float = 0.0  # share of the text's own next token in the target
    student: Literal["full", "candidates"] = "full"  # what its softmax runs over: see docs
    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator
    chunk: int = 512  # tokens per device whose logits and targets exist at one time

    def __post_init__(self) -> None:
        require(
            self.temperature > 0.0,
            f"loss.temperature is {self.temperature}: it must be above 0 (1 is the report's)",
        )
        require(
            0.0 <= self.hard_label_weight <= 1.0,
            f"loss.hard_label_weight is {self.hard_label_weight}: it must lie between 0 and 1",
        )
        require(
            0.0 <= self.z_loss < 1.0,
            f"loss.z_loss is {self.z_loss}: it must lie between 0 and 1 (1e-4 is usual)",
        )
        require(self.chunk >= 1, f"loss.chunk is {self.chunk}: it must be at least 1")
        require(self.seed >= 0, f"loss.seed is {self.seed}: it must be 0 or more")

    @property
    def is_mixed(self) -> bool:
        """Whether text and teacher make one target; else each has a softmax of its own."""
        return self.temperature == 1.0 and self.student == "full"

    @property
    def passes(self) -> int:
        """How often the loss goes over the logits."""
        return 1 if self.is_mixed or self.hard_label_weight == 0.0 else 2


def taught(teacher: Gemma, batch: Batch, config: Distillation) -> Batch:
    """The batch with the teacher's candidates of each position.

    What is drawn depends on the seed, the row's tokens and the position in it alone: on no mesh, no
    order of rows, and not on whether it is drawn in the step or for a store.
    """
    states_btd = final_states(teacher, batch)
    candidates_btq, probabilities_btq = draw(
        states_btd,
        teacher.embedding.table[...],
        _draws(batch.tokens_bt, config.seed),
        config.sampler,
        temperature=config.temperature,
        soft_cap=teacher.config.final_soft_cap,
        chunk=config.chunk,
    )
    return replace(batch, candidates_btq=candidates_btq, probabilities_btq=probabilities_btq)


def distillation_loss(
    model: Gemma, batch: Batch, token_weight: jax.Array, config: Distillation
) -> tuple[jax.Array, jax.Array]:
    """(loss, cross-entropy of the text's own tokens): float32 sums, as `next_token_loss` gives.

    A position whose candidates have no mass learns from the text. At another temperature, or with a
    student over the candidates, text and teacher are losses over different softmaxes, each with its
    own pass over the logits; without a weight of the text there is no such pass, and that position
    learns nothing. The soft part is multiplied by temperature squared (Hinton et al. 2015).
    """
    assert batch.candidates_btq is not None and batch.probabilities_btq is not None
    states_btd = final_states(model, batch)
    table_vd, weights_bt = model.embedding.table[...], batch.weights_bt * token_weight

    def loss_of(targets: Targets, terms: LossTerms) -> tuple[jax.Array, jax.Array]:
        return vocabulary_loss(states_btd, table_vd, targets, weights_bt, terms)

    terms = LossTerms(
        z_loss=config.z_loss, soft_cap=model.config.final_soft_cap, chunk=config.chunk
    )
    is_untaught_bt = jnp.sum(batch.probabilities_btq, axis=-1) == 0.0
    text = Targets(
        hard_bt=batch.targets_bt,
        hard_weights_bt=jnp.where(is_untaught_bt, 1.0, config.hard_label_weight),
    )
    teachers = Targets(
        hard_bt=batch.targets_bt,
        candidates_btq=batch.candidates_btq,
        probabilities_btq=batch.probabilities_btq
        * ((1.0 - config.hard_label_weight) * config.temperature**2),
    )
    if config.is_mixed:
        return loss_of(replace(teachers, hard_weights_bt=text.hard_weights_bt), terms)
    soft_terms = replace(terms, temperature=config.temperature, student=config.student)
    if config.passes == 1:
        return loss_of(teachers, soft_terms)
    soft_loss, _ = loss_of(teachers, replace(soft_terms, z_loss=0.0))
    hard_loss, cross_entropy = loss_of(text, terms)
    return soft_loss + hard_loss, cross_entropy


def _draws(tokens_bt: jax.Array, seed: int) -> jax.Array:
    """uint32 [b, t]: what the random numbers of each position are drawn from.

    A sum over the row of each token's hash with its place and the seed, hashed with the position:
    equal rows draw equally, and each place of a row in its own way.
    """
    place_bt = jax.lax.broadcasted_iota(
        jnp.uint32, tokens_bt.shape, 1, out_sharding=jax.typeof(tokens_bt).sharding
    )
    place_bt = _hashed(place_bt + jnp.uint32(seed * 0x9E3779B9 % 2**32))
    row_b1 = jnp.sum(_hashed(tokens_bt.astype(jnp.uint32) ^ place_bt), axis=1, keepdims=True)
    return _hashed(row_b1 + place_bt)


def _hashed(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every bit depends on every other (MurmurHash3's last step)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
