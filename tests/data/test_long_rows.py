"""Long rows: each within one document, none twice, joined only where too few are long enough."""

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


def test_a_row_is_within_one_document_behind_its_bos_and_overlaps_with_none(data):
    short, long, longer = document(10, 8), document(100, 9), document(200, 26)
    found = long_rows(data([short, long], [longer, short]), 8, 100)
    assert found.documents == 2
    rows = [long[1:], *(longer[start : start + 8] for start in (1, 9, 17))]
    assert found.ids_bt.tolist() == rows
    assert np.unique(found.ids_bt).size == found.ids_bt.size


def test_a_document_of_two_datasets_is_one(data):
    long, longer, short = document(100, 20), document(200, 31), document(10, 5)
    found = long_rows(data([short, long, longer], [longer, long]), 8, 100)
    assert found.documents == 2 and "one of 2 held-out" in found.told
    assert found.ids_bt.tolist() == long_rows(data([short, long, longer]), 8, 100).ids_bt.tolist()


def test_fewer_rows_are_spread_evenly(data):
    found = long_rows(data([document(100, 41)]), 8, 2)
    assert found.ids_bt[:, 0].tolist() == [100, 116]
    assert found.documents == 1 and "one of 1 held-out" in found.told


@pytest.mark.parametrize("last", [8, 10])
def test_documents_are_joined_only_where_too_few_are_long_enough_and_it_is_said(data, last):
    documents = [document(10, 8), document(20, 8), document(30, last)]
    found = long_rows(data(documents[:2], documents), 8, 9)
    stream = np.concatenate(documents)
    assert found.documents == 0 and "join documents" in found.told
    rows = [stream[start : start + 8] for start in (1, 9, 17)][: (stream.size - 1) // 8]
    assert found.ids_bt.tolist() == np.array(rows).tolist()


def test_a_dataset_without_documents_has_no_rows(data):
    assert len(long_rows(data([], [document(100, 41)]), 8, 9).ids_bt) == 5
    with pytest.raises(UserError, match="has 0 tokens without images in 0 documents"):
        long_rows(data([]), 8, 9)


@pytest.mark.parametrize(
    ("documents", "line"),
    [
        ([document(10, 8)], "has 8 tokens without images in 1 documents, 0 rows of 8, and an int"),
        ([document(10, 16)], "16 tokens .* 1 rows of 8, and an interval needs 2: ask for shorter"),
    ],
)
def test_fewer_rows_than_an_interval_needs_is_a_line(documents, line, data):
    with pytest.raises(UserError, match=line):
        long_rows(data(documents, documents), 8, 9)
