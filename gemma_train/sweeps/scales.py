"""The two scales at which ablations run: minutes on a laptop, and a slice of TPUs."""

from dataclasses import dataclass, replace

from gemma_train.config import RunConfig
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.evaluation.held_out import EvaluationConfig
from gemma_train.losses.distillation import Online
from gemma_train.losses.next_token import NextToken
from gemma_train.mesh import MeshConfig
from gemma_train.model.config import ComputeConfig, GemmaConfig
from gemma_train.model.sizes import GEMMA3_1B, GEMMA3_12B, GEMMA3_270M
from gemma_train.optimizer import OptimizerConfig

TEACHERS = "runs/ablations/teachers"  # where configs/ablations/teachers.py puts the laptop's


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the ablations of one scale share."""

    name: str
    student: RunConfig  # trained from the text
    small_teacher: Online  # about as large as the student
    large_teacher: Online

    def folder(self, ablation: str) -> str:
        """Where a sweep of this scale keeps its runs."""
        return f"runs/ablations/{ablation}_{self.name}"


def for_steps(run: RunConfig, steps: int) -> RunConfig:
    """The run with another horizon: its warmup is a tenth of it, its evaluations a sixth apart."""
    return replace(
        run,
        steps=steps,
        optimizer=replace(run.optimizer, warmup_steps=max(steps // 10, 1)),
        evaluation=replace(run.evaluation, every_steps=max(steps // 6, 1)),
        checkpoint_every_steps=steps,
    )


def _small(*, width: int, heads: int) -> GemmaConfig:
    """A Gemma 3 of six layers over the quickstart's vocabulary."""
    return GemmaConfig(
        vocabulary=4096,
        width=width,
        layers=6,
        query_heads=heads,
        key_value_heads=1,
        head_dimension=width // heads,
        hidden=4 * width,
        context=512,
        pattern=("local",) * 5 + ("global",),
        window=64,
        query_key_norm=True,
        post_norms=True,
        global_rope_base=1_000_000.0,
    )


def _on_a_laptop(model: GemmaConfig, steps: int) -> RunConfig:
    run = RunConfig(
        folder="runs/ablations/student",
        model=model,
        data=DataConfig(
            tokenizer="data/quickstart/tokenizer.model",
            train=(TokenSource(path="data/quickstart/train"),),
            held_out=("data/quickstart/held_out",),
            sequence_length=256,
            batch_rows=4,
        ),
        steps=steps,
        optimizer=OptimizerConfig(peak_lr=8e-3, final_lr_fraction=0.05),
        compute=ComputeConfig(dtype="float32", remat="none"),
        evaluation=EvaluationConfig(rows=128),
        checkpoints_kept=1,
        tensorboard=False,
    )
    return for_steps(run, steps)


LAPTOP_STUDENT = _small(width=96, heads=3)
LAPTOP_TEACHER = _small(width=192, heads=3)
# The laptop's teachers, by their names: as long as `make train`, and then as long again.
LAPTOP_TEACHERS = {
    "small": _on_a_laptop(LAPTOP_STUDENT, steps=1500),
    "large": _on_a_laptop(LAPTOP_TEACHER, steps=1500),
}
LAPTOP = Scale(
    name="laptop",
    student=_on_a_laptop(LAPTOP_STUDENT, steps=300),
    small_teacher=Online(
        weights=f"{TEACHERS}/teacher=small", model=LAPTOP_STUDENT, dtype="float32"
    ),
    large_teacher=Online(
        weights=f"{TEACHERS}/teacher=large", model=LAPTOP_TEACHER, dtype="float32"
    ),
)

_POD_RUN = RunConfig(
    folder="runs/ablations/student",
    model=GEMMA3_270M,
    data=DataConfig(
        tokenizer="data/gemma3/tokenizer.model",
        train=(TokenSource(path="data/gemma3/train"),),
        held_out=("data/gemma3/held_out",),
        sequence_length=2048,
        batch_rows=256,
    ),
    steps=4000,
    loss=NextToken(z_loss=1e-4, chunk=256),
    optimizer=OptimizerConfig(peak_lr=1e-3),
    mesh=MeshConfig(data=16, topology="v5e:4x4", runtime="many_processes"),
    evaluation=EvaluationConfig(rows=256),
    checkpoints_kept=1,
)
POD = Scale(
    name="pod",
    student=for_steps(_POD_RUN, 4000),
    small_teacher=Online(weights="gemma-3-1b-pt", model=GEMMA3_1B),
    large_teacher=Online(weights="gemma-3-12b-pt", model=GEMMA3_12B),
)
