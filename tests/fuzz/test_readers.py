"""Every reader of files with some hundred damaged inputs; `make fuzz` has thousands."""

import pytest

from tests.fuzz import campaign
from tests.fuzz.readers import READERS

CASES = {name: 120 // min(reader.cost, 6) for name, reader in READERS.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all readers, in one process."""
    folder = tmp_path_factory.mktemp("readers")
    return campaign.run(CASES, folder)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(results, name):
    found = results[name]
    assert found.inputs == CASES[name]
    assert [f"{finding.place}: {finding.line}" for finding in found.findings] == []
    assert found.refused > 0
