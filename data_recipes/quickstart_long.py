"""The long documents among the quickstart's Python sources, for configs/long_quickstart.py.

Those of 12,000 characters and more, which are about 4,096 tokens. After data_recipes/quickstart.py,
whose tokenizer it takes.
"""

from dataclasses import replace

from gemma_train.data.recipe import load_recipe
from gemma_train.stages.long_context import long_documents

quickstart = load_recipe("data_recipes/quickstart.py")
library = tuple(source for source in quickstart.sources if source.name.startswith("library"))

recipe = long_documents(replace(quickstart, sources=library), minimum_characters=12_000)
