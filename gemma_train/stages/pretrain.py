"""The first stage: next-token pretraining at full size."""

from dataclasses import replace

from gemma_train.config import RunConfig
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.evaluation.held_out import EvaluationConfig
from gemma_train.losses.next_token import NextToken
from gemma_train.mesh import MeshConfig
from gemma_train.model.config import SAVABLE, ComputeConfig, GemmaConfig
from gemma_train.optimizer import OptimizerConfig

# Every product of a layer is computed again in the backward pass: the least memory.
RECOMPUTE = ComputeConfig()
# None is, and neighbours are compiled once: for runs whose chips have the memory, as plan says.
KEEP_PRODUCTS = ComputeConfig(remat="save_named", saved=SAVABLE, scan_neighbours=True)
# The feed-forward's two wide ones are, two thirds of all bytes and an eighth of the FLOPs.
KEEP_ALL_BUT_WIDE = replace(
    KEEP_PRODUCTS, saved=tuple(name for name in SAVABLE if name not in ("gate", "up"))
)


def pretraining(
    name: str,
    model: GemmaConfig,
    *,
    tokens: float,
    batch_rows: int,
    mesh: MeshConfig,
    peak_lr: float,
    compute: ComputeConfig = RECOMPUTE,
) -> RunConfig:
    """A run of `tokens` tokens at the model's whole context, in runs/`name`.

    Its text is in data/<generation>, the first word of `name`, where the recipe of that name in
    data_recipes/ puts it. The reports publish tokens and meshes; batch, learning rate, schedule
    and z-loss are ours.
    """
    generation = name.split("_")[0]
    step_tokens = batch_rows * model.context
    return RunConfig(
        folder=f"runs/{name}",
        model=model,
        data=DataConfig(
            tokenizer=f"data/{generation}/tokenizer.model",
            train=(TokenSource(path=f"data/{generation}/train"),),
            held_out=(f"data/{generation}/held_out",),
            sequence_length=model.context,
            batch_rows=batch_rows,
        ),
        steps=round(tokens / step_tokens),
        loss=NextToken(z_loss=1e-4, chunk=256),  # 268 MB of logits at one time, not a gigabyte
        optimizer=OptimizerConfig(peak_lr=peak_lr, warmup_steps=2000),
        compute=compute,
        mesh=mesh,
        evaluation=EvaluationConfig(every_steps=1000, rows=batch_rows),
        checkpoint_every_steps=1000,
    )


def pretraining_recipe(generation: str) -> Recipe:
    """The text of a generation's runs: Parquet files with a column `text` below corpus/.

    The tokenizer is the one published with it, put at data/`generation`/tokenizer.model.
    """
    return Recipe(
        name=generation,
        folder=f"data/{generation}",
        tokenizer=f"data/{generation}/tokenizer.model",
        sources=(
            TextSource(
                name="corpus",
                files=("corpus/**/*.parquet",),
                format="parquet",
                licence="yours to state",
                held_out_fraction=0.0001,
            ),
        ),
    )
