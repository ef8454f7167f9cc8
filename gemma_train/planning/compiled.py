"""The train step as the TPU compiler makes it: what it holds at its fullest, and its program.

It is the very function that the trainer runs, lowered from shapes alone. Of the compiler's memory
figures `peak_memory_in_bytes` is used; `temp_size_in_bytes` can be far from what is held at once.
"""

import ctypes
import re
import time
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from gemma_train.config import RunConfig
from gemma_train.placement import abstract_batch
from gemma_train.silence import silenced_standard_error
from gemma_train.teachers.online import abstract_teacher
from gemma_train.teachers.stored import batch_layout
from gemma_train.training.state import abstract_state
from gemma_train.training.step import make_step

_REFUSAL = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A step that compiled. Bytes are those of one chip."""

    peak_bytes: int
    argument_bytes: int  # parameters, moments, batch and, in the step, a teacher
    program: str  # the compiler's own text, HLO after optimisation
    seconds: float  # that it took


@dataclass(frozen=True, kw_only=True)
class TooLarge:
    """A step that the compiler refused, because a chip's memory cannot hold it."""

    needed_bytes: int  # at least
    available_bytes: int  # what a program may have
    seconds: float


def lower_step(config: RunConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The trainer's step on `mesh`, traced from shapes alone: the program before it is compiled."""
    with jax.set_mesh(mesh):
        batch = abstract_batch(mesh, config.data.batch_rows, batch_layout(config))
        step = make_step(config).trace(abstract_state(config), batch, abstract_teacher(config))
        platform = mesh.devices.flat[0].platform
        return step.lower(lowering_platforms=(platform,))


def compile_step(config: RunConfig, mesh: Mesh) -> Compiled | TooLarge:
    """Compile the step of `config` for a mesh of TPU devices: minutes, for a large model."""
    began = time.monotonic()
    _share_one_heap()
    lowered = lower_step(config, mesh)

    def made() -> jax.stages.Compiled | tuple[int, int]:
        """A refusal is a result, and leaves the compiler's noise behind."""
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if (sizes := needed_and_available(str(error))) is None:
                raise
            return sizes

    with silenced_standard_error():
        found = made()
    seconds = time.monotonic() - began
    if isinstance(found, tuple):
        return TooLarge(needed_bytes=found[0], available_bytes=found[1], seconds=seconds)
    memory = found.memory_analysis()
    assert memory is not None, "the TPU compiler tells what it holds"
    return Compiled(
        peak_bytes=memory.peak_memory_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        program=found.as_text() or "",
        seconds=seconds,
    )


def needed_and_available(message: str) -> tuple[int, int] | None:
    """The bytes that a refused program asked for, and those there are; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message or not (found := _REFUSAL.search(message)):
        return None
    return int(float(found[1]) * _UNITS[found[2]]), int(float(found[3]) * _UNITS[found[4]])


def _share_one_heap() -> None:
    """Let the compiler's threads allocate from one heap, where the C library is glibc.

    By default each has its own, and what they free piles up: 1.55 GB of process memory instead of
    1.34 for four layers of 4B.
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(arena_max, 1)
