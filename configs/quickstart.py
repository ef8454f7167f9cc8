"""A five-local, one-global Gemma 3 of a few million parameters, trained on a laptop's CPU.

`gemma-train prepare data_recipes/quickstart.py` makes the data; `make train` does both.
"""

from gemma_train.config import (
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    GemmaConfig,
    OptimizerConfig,
    RunConfig,
    TokenSource,
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
    ),
    data=DataConfig(
        tokenizer="data/quickstart/tokenizer.model",
        train=(TokenSource(path="data/quickstart/train"),),
        held_out=("data/quickstart/held_out",),
        sequence_length=256,
        batch_rows=4,
    ),
    steps=750,
    optimizer=OptimizerConfig(peak_lr=8e-3, warmup_steps=50, final_lr_fraction=0.05),
    compute=ComputeConfig(dtype="float32", remat="none"),
    evaluation=EvaluationConfig(every_steps=300, rows=256),
    checkpoint_every_steps=150,
)
