import sysconfig
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A small tokenizer of real text."""
    path = epath.Path(tmp_path_factory.mktemp("tokenizer") / "small.model")
    library = Path(sysconfig.get_path("stdlib"))
    texts = [file.read_text("utf-8") for file in sorted((library / "json").glob("*.py"))]
    train_tokenizer(texts, TokenizerConfig(path=str(path), vocabulary=700), path)
    return Tokenizer.load(str(path))


@pytest.fixture
def text_bt(tokenizer) -> np.ndarray:
    """Three rows of 256 tokens, without <bos>."""
    ids = tokenizer.encode(Path(sysconfig.get_path("stdlib"), "ast.py").read_text("utf-8"))
    return np.array(ids[: 3 * 256], np.int32).reshape(3, 256)
