"""What processes tell each other, within one; with two: tests/commands/test_lone_process.py."""

import pytest

from gemma_train.agreement import _packed, _unpacked
from gemma_train.errors import Damaged, Elsewhere, Stalled, UserError
from gemma_train.sidecar import OtherVersion


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (Damaged("it is cut"), Damaged, "it is cut"),
        (OtherVersion("it is another's"), UserError, "it is another's"),
        (Stalled("no answer"), Stalled, "no answer"),
        (KeyError("a fault"), Elsewhere, "process 0 failed: KeyError('a fault')"),
        (BrokenPipeError(32, "Broken pipe", "/mnt/x"), Stalled, "/mnt/x: Broken pipe"),
    ],
    ids=repr,
)
def test_an_error_comes_to_the_others_as_the_kind_that_it_is(error, kind, words):
    told = _unpacked(_packed(error))
    assert type(told) is kind and str(told) == words
