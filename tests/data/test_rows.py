import pickle

import numpy as np
import pytest

from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset
from gemma_train.errors import UserError


def slow_rows(documents: list[list[int]], length: int) -> list[list[list[float]]]:
    """The definition, token by token."""
    stream = [(token, number) for number, document in enumerate(documents) for token in document]
    rows = []
    for start in range(0, len(stream) - 1, length):
        row, segment, position = [[], [], [], [], []], 0, 0
        for here in range(start, start + length):
            if here + 1 >= len(stream):
                values = (0, 0, 0, 0, 0.0)
            else:
                (token, document), (target, next_document) = stream[here], stream[here + 1]
                if here == start or document != stream[here - 1][1]:
                    segment, position = segment + 1, 0
                values = (token, target, position, segment, float(document == next_document))
                position += 1
            for field, value in zip(row, values, strict=True):
                field.append(value)
        rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [1, 7, 64, 1_000])
def test_rows_equal_the_definition(write_dataset, made_documents, tmp_path, seed, length):
    documents = made_documents(seed, longest=(5, 40)[seed % 2])
    folder = write_dataset(tmp_path / "made", documents, shard_tokens=(50, 2**20)[seed % 3 > 0])
    rows = Rows(TokenDataset(folder), length)
    expected = slow_rows(documents, length)
    assert len(rows) == len(expected)
    for index, row in enumerate(expected):
        assert [field.tolist() for field in rows[index][:5]] == row
        assert rows[index][5:] == (None,) * 4


def test_every_token_but_the_first_is_a_target_once(write_dataset, made_documents, tmp_path):
    documents = made_documents()
    rows = Rows(TokenDataset(write_dataset(tmp_path / "made", documents)), 16)
    targets = [rows[i].targets[rows[i].segments > 0] for i in range(len(rows))]
    assert np.concatenate(targets).tolist() == [token for each in documents for token in each][1:]


def test_fields_have_the_types_of_a_batch(write_dataset, made_documents, tmp_path):
    rows = Rows(TokenDataset(write_dataset(tmp_path / "made", made_documents())), 8)
    assert [field.dtype.name for field in rows[0][:5]] == ["int32"] * 4 + ["float32"]


def test_rows_survive_pickling_without_their_maps(write_dataset, made_documents, tmp_path):
    rows = Rows(TokenDataset(write_dataset(tmp_path / "made", made_documents())), 8)
    expected = rows[3]
    pickled = pickle.dumps(rows)
    assert len(pickled) < 2_000
    for field, again in zip(expected, pickle.loads(pickled)[3], strict=True):
        np.testing.assert_array_equal(field, again)


def test_a_dataset_of_one_token_is_refused(write_dataset, tmp_path):
    dataset = TokenDataset(write_dataset(tmp_path / "made", [[2]]))
    with pytest.raises(UserError, match="holds 1 tokens"):
        Rows(dataset, 8)
