"""Text for the configs of Gemma 2: Parquet files of your own, with Gemma's tokenizer.

Put the published tokenizer (256,000 pieces) at data/gemma2/tokenizer.model and Parquet files with a
column `text` under corpus/, then run `gemma-train prepare data_recipes/gemma2.py`. Add a TextSource
for each corpus that has a licence of its own.
"""

from gemma_train.data.recipe import Recipe, TextSource

recipe = Recipe(
    name="gemma2",
    folder="data/gemma2",
    tokenizer="data/gemma2/tokenizer.model",
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
