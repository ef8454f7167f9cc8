"""The two scales at which ablations run: minutes on a laptop, and a slice of TPUs.

The laptop's follows from configs/quickstart_text.py: its data, optimizer and model.
"""

from dataclasses import dataclass, replace

from gemma_train.config import RunConfig
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.evaluation.held_out import EvaluationConfig
from gemma_train.losses.distillation import Online
from gemma_train.losses.next_token import NextToken
from gemma_train.mesh import MeshConfig
from gemma_train.model.config import GemmaConfig
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


def laptop(quickstart: RunConfig) -> Scale:
    """Minutes on a CPU: the quickstart's text and optimizer; its model is the large teacher's."""
    models = _laptop_models(quickstart)
    small, large = (
        Online(weights=f"{TEACHERS}/teacher={name}", model=model, dtype="float32")
        for name, model in models.items()
    )
    student = _on_a_laptop(quickstart, models["small"], steps=300)
    return Scale(name="laptop", student=student, small_teacher=small, large_teacher=large)


def laptop_teachers(quickstart: RunConfig) -> dict[str, RunConfig]:
    """The laptop's teachers by their names, for five times the student's steps."""
    return {
        name: _on_a_laptop(quickstart, model, steps=1500)
        for name, model in _laptop_models(quickstart).items()
    }


def _laptop_models(quickstart: RunConfig) -> dict[str, GemmaConfig]:
    """The quickstart's own, and one of half its widths."""
    large = quickstart.model
    halves = {name: getattr(large, name) // 2 for name in ("width", "head_dimension", "hidden")}
    return {"small": replace(large, **halves), "large": large}


def _on_a_laptop(quickstart: RunConfig, model: GemmaConfig, *, steps: int) -> RunConfig:
    run = replace(
        quickstart,
        folder="runs/ablations/student",
        model=model,
        evaluation=EvaluationConfig(rows=128),
        checkpoints_kept=1,
        tensorboard=False,
    )
    return for_steps(run, steps)


def attention_laptop(quickstart: RunConfig) -> RunConfig:
    """What the ablations of attention begin from on a laptop: narrow, and 24 layers.

    1, 3, 5 and 7 local layers and a global one all divide 24. Rows are twice the quickstart's, half
    as many: eight windows of 64.
    """
    narrow = replace(
        quickstart.model, layers=24, width=64, query_heads=2, head_dimension=32, hidden=256
    )
    run = _on_a_laptop(quickstart, narrow, steps=200)
    return replace(run, data=replace(run.data, sequence_length=512, batch_rows=2))


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
# The same on a pod: 270M with 24 layers, rows of 16 windows of 512.
ATTENTION_POD = replace(
    POD.student,
    model=replace(GEMMA3_270M, layers=24),
    data=replace(POD.student.data, sequence_length=8192, batch_rows=64),
)
