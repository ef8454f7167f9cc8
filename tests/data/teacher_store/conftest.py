"""The rows that the stores of these tests teach."""

import pytest

from gemma_train.data.config import DataConfig, TokenSource
from tests.data.teacher_store.made import LENGTH


@pytest.fixture
def config(write_dataset, made_documents, tokenizer, tmp_path) -> DataConfig:
    one = write_dataset(tmp_path / "one", made_documents(1, count=120))
    two = write_dataset(tmp_path / "two", made_documents(2, count=60))
    return DataConfig(
        tokenizer=tokenizer.name,
        train=(TokenSource(path=one, weight=3), TokenSource(path=two, weight=1)),
        sequence_length=LENGTH,
        batch_rows=6,
        read_threads=0,
        prefetch_batches=2,
    )
