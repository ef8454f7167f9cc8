"""A small tokenizer, for the formats that carry one."""

from pathlib import Path

import pytest
from etils import epath

from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer

PACKAGE = Path(__file__).parents[2] / "gemma_train"


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    """A SentencePiece model of 600 pieces."""
    file = epath.Path(tmp_path_factory.mktemp("tokenizer") / "some.model")
    texts = [source.read_text() for source in PACKAGE.rglob("*.py")]
    train_tokenizer(texts, TokenizerConfig(path=str(file), vocabulary=600), file)
    return Path(file)
