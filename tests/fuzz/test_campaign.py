"""The fuzzing itself: what a reader may not do is caught, whatever became of the process."""

from random import Random

import pytest

from tests.fuzz import campaign
from tests.fuzz.bad_readers import READERS
from tests.fuzz.case import hurt
from tests.fuzz.child import sample_of
from tests.fuzz.damage import damaged
from tests.fuzz.reader import files_of, put

CASES = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All of them, by name, in one campaign."""
    folder = tmp_path_factory.mktemp("campaign")
    cases = dict.fromkeys(READERS, CASES)
    return campaign.run(cases, folder, module="tests.fuzz.bad_readers", seconds=1.0)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("raising", "ValueError: not caught"),
        ("multiline", "a message that is not one line"),
        ("waiting", "it did not end"),
        ("dying", "it killed the process (11 is the signal)"),
        ("leaving", "exit code 0"),
        ("greedy", "MemoryError"),
        ("hiding", "out of memory, told as: the file is too large"),
    ],
)
def test_what_no_reader_may_do_is_found_in_every_case(results, name, line):
    found = results[name]
    assert (found.inputs, found.well + found.refused) == (CASES, 0)
    assert [finding.case for finding in found.findings] == list(range(CASES))
    assert all(line in finding.line for finding in found.findings)


def test_a_reader_that_refuses_is_well(results):
    assert (results["good"].refused, results["good"].findings) == (CASES, ())


def test_memory_that_is_kept_is_measured(results):
    found = results["hoarding"]
    assert found.memory > 300_000_000
    assert found.inputs == CASES


def test_a_case_is_always_the_same_and_its_files_are_told_from_the_sample():
    reader = READERS["good"]
    sample = sample_of(reader)
    one, other, third = (
        [hurt(reader, sample, seed=seed, case=case) for case in range(50)] for seed in (1, 1, 2)
    )
    assert one == other != third
    assert one.count(sample) < 5  # where a value happened to be replaced by itself


def test_files_are_put_back_as_they_were(tmp_path):
    sample = {"a.json": b'{"x": 1}', "b/c.bin": bytes(range(200)), "d.py": b"config = X(a=1)\n"}
    put(sample, tmp_path, {})
    for case in range(300):
        files = damaged(sample, Random(case))
        put(files, tmp_path, sample)
        assert files_of(tmp_path) == {n: c for n, c in files.items() if c is not None}
        put(sample, tmp_path, files)
        assert files_of(tmp_path) == sample
