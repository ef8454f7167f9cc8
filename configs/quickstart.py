"""A five-local, one-global Gemma 3 of a few million parameters, trained on a laptop's CPU.

It reads text and, one row in five, images with captions. `make train` prepares both and trains it.
"""

from gemma_train.config import (
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    GemmaConfig,
    ImageRows,
    OptimizerConfig,
    RunConfig,
    TokenSource,
    VisionConfig,
)

config = RunConfig(
    folder="runs/quickstart",
    model=GemmaConfig(
        vocabulary=4096,
        width=192,
        layers=6,
        query_heads=3,
        key_value_heads=1,
        head_dimension=64,
        hidden=768,
        context=512,
        pattern=("local",) * 5 + ("global",),
        window=64,
        query_key_norm=True,
        post_norms=True,
        global_rope_base=1_000_000.0,
        vision=VisionConfig(side=16, patch=4, width=64, layers=2, heads=4, hidden=128, tokens=16),
    ),
    data=DataConfig(
        tokenizer="data/quickstart/tokenizer.model",
        train=(
            TokenSource(path="data/quickstart/train", weight=4),
            TokenSource(path="data/quickstart_images/train", weight=1),
        ),
        held_out=("data/quickstart/held_out", "data/quickstart_images/held_out"),
        images=ImageRows(store="data/quickstart_images/images", per_row=8),
        sequence_length=256,
        batch_rows=4,
    ),
    steps=640,
    optimizer=OptimizerConfig(peak_lr=8e-3, warmup_steps=50, final_lr_fraction=0.05),
    compute=ComputeConfig(dtype="float32", remat="none"),
    evaluation=EvaluationConfig(every_steps=300, rows=256, captions=200),
    checkpoint_every_steps=150,
)
