"""`gemma-train train CONFIG`: run a config from the start, or from where it stopped."""

import time

import jax

from gemma_train.config import RunConfig
from gemma_train.data.unigram import unigram_entropy
from gemma_train.mesh import is_leader, start_runtime
from gemma_train.model.flops import parameter_count
from gemma_train.training.claim import finished, write_captions, write_summary
from gemma_train.training.loop import Outcome
from gemma_train.training.run import train


def run(config: RunConfig) -> None:
    """Train, then say how well the held-out text is known and where things are."""
    start_runtime(config.mesh)
    say = print if is_leader() else lambda text: None
    if finished(config):
        say(
            f"{config.folder} is finished: all {config.steps:,} steps are done.\n"
            f"{_next_steps(config.folder)}\n"
            f"  gemma-train checkpoint verify {config.folder}  reads its checkpoints\n"
            f"To train it anew, remove {config.folder} or give another --folder."
        )
        return
    parameters = parameter_count(config.model)
    say(
        f"{config.folder}: {parameters:,} parameters, {config.steps:,} steps of "
        f"{config.step_tokens:,} tokens, mesh of {config.mesh.devices} device(s)"
    )
    began = time.monotonic()
    outcome = train(config, say)
    if outcome.finished and is_leader():
        _conclude(config, outcome, parameters, time.monotonic() - began)


def _conclude(config: RunConfig, outcome: Outcome, parameters: int, seconds: float) -> None:
    """Print and keep the figures of a finished run."""
    figures: dict[str, float | int | str] = {
        "parameters": parameters,
        "tokens": config.steps * config.step_tokens,
        "device": jax.devices()[0].device_kind,
        "seconds": round(seconds, 1),
    }
    if outcome.held_out is not None:
        entropy = unigram_entropy(config.data, maximum_rows=config.evaluation.rows)
        figures["held_out_loss"] = outcome.held_out.loss
        figures["unigram_entropy"] = entropy
        print(outcome.held_out.told(entropy))
    if outcome.captions is not None:
        figures["captions_right"] = outcome.captions.right / len(outcome.captions.answers)
        figures["captions_chance"] = outcome.captions.chance
        print(outcome.captions.told)
        write_captions(config, outcome.captions)
    write_summary(config.folder, figures)
    print(_next_steps(config.folder))


def _next_steps(folder: str) -> str:
    return (
        f"  gemma-train sample {folder} --prompt 'import os'  continues a text\n"
        f"  gemma-train report {folder}                        draws its curves"
    )
