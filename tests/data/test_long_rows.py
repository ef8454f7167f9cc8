"""Long rows: each within one document, none twice, joined only where no document is long enough."""

import numpy as np
import pytest

from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.long_rows import long_rows
from gemma_train.data.shards import TokenDataset
from gemma_train.errors import UserError


def document(first: int, length: int) -> list[int]:
    """`length` ids that count up, so that what a row was cut from can be told."""
    return [2, *range(first, first + length - 2), 1]


@pytest.fixture
def data(write_dataset, tokenizer, tmp_path):
    """A config whose held-out datasets hold these documents."""
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)

    def make(*datasets: list[list[int]], shard_tokens: int = 2**20) -> DataConfig:
        folders = [
            write_dataset(tmp_path / f"held_out_{number}", documents, shard_tokens)
            for number, documents in enumerate(datasets)
        ]
        return DataConfig(
            tokenizer=str(tmp_path / "tokenizer.model"),
            train=(TokenSource(path="none"),),
            held_out=tuple(folders),
        )

    return make


def test_the_starts_of_documents_are_told_over_all_shards(data):
    documents = [document(10, 5), document(20, 7), document(30, 3)]
    config = data(documents, shard_tokens=6)
    assert TokenDataset(config.held_out[0]).document_starts().tolist() == [0, 5, 12]


def test_a_row_is_within_one_document_and_what_it_predicts_is_in_no_other(data):
    short, long, longer = document(10, 8), document(100, 9), document(200, 26)
    found = long_rows(data([short, long], [longer, short]), 8, 100)
    assert found.documents == 2
    rows = [long, *(longer[start : start + 9] for start in (0, 8, 16))]
    assert found.ids_bt.tolist() == rows
    predicted = found.ids_bt[1:, 1:].ravel()
    assert len(set(predicted.tolist())) == predicted.size


def test_fewer_rows_are_spread_evenly(data):
    found = long_rows(data([document(100, 41)]), 8, 2)
    assert found.ids_bt[:, 0].tolist() == [2, 115]
    assert found.documents == 1 and "one of 1 held-out" in found.told


def test_documents_are_joined_only_where_none_is_long_enough_and_it_is_said(data):
    found = long_rows(data([document(10, 8), document(20, 8), document(30, 8)]), 8, 9)
    stream = np.concatenate([document(first, 8) for first in (10, 20, 30)])
    assert found.documents == 0 and "join documents" in found.told
    assert found.ids_bt.tolist() == [stream[:9].tolist(), stream[8:17].tolist()]


def test_too_little_text_is_a_line(data):
    with pytest.raises(UserError, match="8 tokens without images.* a row of 8"):
        long_rows(data([document(10, 8)]), 8, 9)
