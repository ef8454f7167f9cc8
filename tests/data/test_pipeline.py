import dataclasses

import pytest

from gemma_train.data.config import TokenSource
from gemma_train.data.pipeline import batches, held_out_batches
from gemma_train.errors import UserError


def test_opening_refuses_what_does_not_fit(config, tmp_path):
    (tmp_path / "other.model").write_bytes(b"another")
    wrong = {
        "tokenizer 'none.model' does not exist": {"tokenizer": "none.model"},
        "was made with tokenizer": {"tokenizer": str(tmp_path / "other.model")},
        "'nowhere' holds no finished dataset": {"train": (TokenSource(path="nowhere"),)},
    }
    for message, change in wrong.items():
        with pytest.raises(UserError, match=message):
            batches(dataclasses.replace(config, **change), start_row=0, batch_indices=[0])
    with pytest.raises(UserError, match="data.held_out is empty"):
        held_out_batches(dataclasses.replace(config, held_out=()), batch_rows=1)
    with pytest.raises(UserError, match="start_row is -1"):
        batches(config, start_row=-1, batch_indices=[0])
