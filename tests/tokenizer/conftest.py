import sysconfig
from pathlib import Path

import pytest
from etils import epath

from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A megabyte of real text."""
    library = Path(sysconfig.get_path("stdlib"))
    return [file.read_text("utf-8") for file in sorted((library / "asyncio").glob("*.py"))]


@pytest.fixture(scope="session")
def tokenizer(texts, tmp_path_factory) -> Tokenizer:
    """A tokenizer of 2,100 pieces, with runs of newlines and spaces."""
    path = tmp_path_factory.mktemp("tokenizer") / "gemma.model"
    train_tokenizer(texts, TokenizerConfig(path=str(path), vocabulary=2_100), epath.Path(path))
    return Tokenizer.load(str(path))
