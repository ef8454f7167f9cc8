"""Text for the configs of Gemma 2: your Parquet files, Gemma's 256,000 pieces.

Put the published tokenizer at data/gemma2/tokenizer.model and Parquet files with a column `text`
below corpus/. For several corpora, each with its licence, write a Recipe with a TextSource each.
"""

from gemma_train.stages.pretrain import pretraining_recipe

recipe = pretraining_recipe("gemma2")
