"""Every reader of files with some hundred damaged inputs; `make fuzz` has thousands."""

import pytest

from tests.fuzz import campaign
from tests.fuzz.readers import READERS

CASES = 100
SLOW = {"report": 20, "orbax arrays": 30, "gemma orbax": 30, "run folder": 30}  # cases of those


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all readers, in one process."""
    folder = tmp_path_factory.mktemp("readers")
    return campaign.run({name: SLOW.get(name, CASES) for name in READERS}, folder)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(results, name):
    found = results[name]
    assert found.inputs == SLOW.get(name, CASES)
    assert [f"{finding.place}: {finding.line}" for finding in found.findings] == []
    assert found.refused > 0
