"""The long documents among the text of data_recipes/gemma3.py, for the stage at 131,072 tokens.

Those of 131,072 characters and more: at about four a token, longer than a row of pretraining.
"""

from gemma_train.stages.long_context import long_documents
from gemma_train.stages.pretrain import pretraining_recipe

recipe = long_documents(pretraining_recipe("gemma3"), minimum_characters=131_072)
