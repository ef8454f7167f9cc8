"""Text for the configs of Gemma 3: your Parquet files, Gemma's 262,144 pieces.

Put the published tokenizer at data/gemma3/tokenizer.model and Parquet files with a column `text`
below corpus/. For several corpora, each with its licence, write a Recipe with a TextSource each.
"""

from gemma_train.stages.pretrain import pretraining_recipe

recipe = pretraining_recipe("gemma3")
