"""The TPU kernel, its steps interpreted on a CPU, against the definition of attention."""

import pytest

from gemma_train.errors import UserError
from gemma_train.kernels import attention_splash
from tests.kernels.test_attention import Sample

# name: (length, query heads, key heads, window, soft cap, mean document, padded tokens)
CASES = {
    "a window inside a block, many documents": (256, 4, 2, 40, None, 60, 0),
    "a window over several blocks, one key head": (384, 2, 1, 200, None, 500, 0),
    "a window of 1": (128, 2, 2, 1, None, 40, 0),
    "all keys, a soft cap, padding": (256, 2, 1, None, 1.5, 90, 70),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of several blocks, though they are short."""
    monkeypatch.setattr(attention_splash, "BLOCK", 128)
    attention_splash._tables.cache_clear()
    yield
    attention_splash._tables.cache_clear()


@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_definition_with_its_gradients(case, small_blocks, mesh_of, packed):
    length, heads, key_heads, window, soft_cap, mean, padding = CASES[case]
    places = packed(1, length, seed=length, mean=mean, padding=padding)
    with mesh_of():
        Sample(places, heads, key_heads, window, soft_cap).check("splash")


@pytest.mark.parametrize(
    ("mesh", "window"),
    [
        ((1, 2, 2), 60),  # the left neighbour's last 128 keys
        ((1, 2, 2), 200),
        ((2, 1, 2), 257),  # all of the left neighbour
        ((2, 1, 2), 300),  # more: every key is gathered
        ((1, 1, 4), 100),
        ((1, 1, 4), 1),
        ((1, 1, 4), None),
    ],
)
def test_split_over_positions_it_is_the_same(mesh, window, small_blocks, mesh_of, packed):
    length = 128 * mesh[2] * (2 if mesh[2] == 2 else 1)
    sample = Sample(packed(2, length, mean=150, padding=30), 2, 1, window, None)
    with mesh_of(*mesh):
        sample.check("splash")


def test_the_tables_of_a_window_grow_with_the_row_and_those_of_all_keys_with_its_square(
    small_blocks,
):
    def visited(window: int | None, length: int) -> int:
        tables = attention_splash._tables(length, length, 2, 0, window, None, "output", True)
        return tables.fwd_mask_info.block_mask.astype(bool).sum()

    assert [visited(128, length) for length in (512, 1024, 2048)] == [7, 15, 31]
    assert [visited(None, length) for length in (512, 1024, 2048)] == [10, 36, 136]


def test_a_length_that_lanes_do_not_divide_is_refused(mesh_of, packed):
    sample = Sample(packed(1, 100), 2, 1, 8, None)
    with mesh_of(), pytest.raises(UserError, match=r"^100 tokens of a row on each device: "):
        sample.check("splash")


@pytest.mark.parametrize(("window", "gathers"), [(100, False), (200, True), (None, True)])
def test_a_window_within_a_shard_gathers_no_keys(window, gathers, small_blocks, mesh_of, packed):
    sample = Sample(packed(2, 256, mean=150), 2, 1, window, None)
    with mesh_of(1, 1, 2):
        program, arguments = sample.program("splash")
        text = program.lower(*arguments).as_text()
    assert ("stablehlo.all_gather" in text) == gathers
    assert ("stablehlo.collective_permute" in text) == (not gathers)
