"""`gemma-train evaluate RUN`: the held-out loss of a run's newest checkpoint."""

import dataclasses
from dataclasses import dataclass

import jax

from gemma_train.config import read_record
from gemma_train.conversion import encoder_record
from gemma_train.conversion.load import load, open_weights
from gemma_train.data.unigram import unigram_entropy
from gemma_train.errors import require
from gemma_train.evaluation.held_out import make_held_out_loss
from gemma_train.mesh import MeshConfig, is_leader, make_mesh, start_runtime
from gemma_train.tokenizer.tokenizer import check_same_ids
from gemma_train.training.images import store_head


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Measure a run's newest checkpoint on held-out text."""

    run: str  # the run folder
    rows: int | None = None  # held-out rows, spread evenly over the text; all if not given
    held_out: tuple[str, ...] = ()  # token datasets; the run's own if none is given
    mesh: MeshConfig = MeshConfig()  # devices to evaluate on; one by default

    def __post_init__(self) -> None:
        require(self.rows is None or self.rows >= 1, f"rows is {self.rows}: must be at least 1")


def run(arguments: EvaluateArguments) -> None:
    """Print the mean loss beside the entropy of the same targets."""
    recorded = read_record(arguments.run)
    config = dataclasses.replace(
        recorded,
        folder=arguments.run,
        mesh=arguments.mesh,
        evaluation=dataclasses.replace(recorded.evaluation, captions=0),
    )
    if arguments.held_out:
        data = dataclasses.replace(config.data, held_out=arguments.held_out)
        config = dataclasses.replace(config, data=data)
    require(
        bool(config.data.held_out),
        f"{arguments.run!r} held nothing out (data.held_out is empty): name datasets by --held-out",
    )
    if (head := store_head(config)) is not None:
        encoder_record.check(config.folder, head)
    start_runtime(config.mesh)
    mesh = make_mesh(config.mesh, jax.devices()[: config.mesh.devices])
    with jax.set_mesh(mesh):
        weights = open_weights(config.folder)
        whose = f"run {config.folder!r} was made with"
        check_same_ids(weights.tokenizer, config.data.tokenizer, whose)
        model = load(weights, config.compute)
        evaluate = make_held_out_loss(
            config.data,
            mesh,
            chunk=config.loss.chunk,
            batch_rows=config.data.batch_rows // config.accumulation,
            maximum_rows=arguments.rows,
        )
        found = evaluate(model)
    if is_leader():
        print(f"{arguments.run} after {weights.step:,} steps")
        print(found.told(unigram_entropy(config.data, maximum_rows=arguments.rows)))
