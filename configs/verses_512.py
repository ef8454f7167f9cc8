"""A toy that learns to look back, in rows of 512 tokens: what is extended in docs/long_context.md.

`gemma-train prepare data_recipes/verses.py` makes the text. One local layer, which sees four
tokens, and one global layer: what came after the same words before is found by the second, through
what the first tells it of each token's neighbour. It learns to after about 500 steps.
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
    folder="runs/verses_512",
    model=GemmaConfig(
        vocabulary=640,
        width=128,
        layers=2,
        query_heads=1,
        key_value_heads=1,
        head_dimension=128,
        hidden=128,
        context=512,
        pattern=("local", "global"),
        window=4,
        query_key_norm=True,
        post_norms=True,
        global_rope_base=1_000_000.0,
    ),
    data=DataConfig(
        tokenizer="data/verses/tokenizer.model",
        train=(TokenSource(path="data/verses/train"),),
        held_out=("data/verses/held_out",),
        sequence_length=512,
        batch_rows=4,
    ),
    steps=1500,
    optimizer=OptimizerConfig(
        peak_lr=1.5e-3, schedule="linear", warmup_steps=50, final_lr_fraction=0.2
    ),
    compute=ComputeConfig(dtype="float32", remat="none"),
    evaluation=EvaluationConfig(every_steps=500, rows=64),
    checkpoint_every_steps=250,
    tensorboard=False,
)
