"""The TPU kernel, its steps interpreted on a CPU, against the definition of attention."""

import jax.numpy as jnp
import pytest

from gemma_train.errors import UserError
from gemma_train.kernels.attention import splash_tables
from tests.kernels.attention.test_attention import Sample, with_images

# name: (length, query heads, key heads, window, soft cap, mean document, padded tokens)
CASES = {
    "a window inside a block, many documents": (256, 4, 2, 40, None, 60, 0),
    "a window over several blocks, one key head": (384, 2, 1, 200, None, 500, 0),
    "a window of 1": (128, 2, 2, 1, None, 40, 0),
    "all keys, a soft cap, padding": (256, 2, 1, None, 1.5, 90, 70),
    "a soft cap under a window": (256, 2, 1, 100, 1.5, 90, 0),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of several blocks, though they are short."""
    monkeypatch.setattr(splash_tables, "BLOCK", 128)
    forget()
    yield
    forget()


def forget() -> None:
    splash_tables.kernel_near.cache_clear()
    splash_tables.kernel_to_all.cache_clear()


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
        ((2, 1, 2), 300),  # more than there is to the left
        ((1, 1, 4), 100),
        ((1, 1, 4), 200),  # from two neighbours
        ((1, 1, 4), 1),
        ((1, 1, 4), None),  # shards that have no halves in whole lanes
        ((1, 1, 2), None),
        ((1, 2, 4), None),
    ],
)
def test_split_over_positions_it_is_the_same(mesh, window, small_blocks, mesh_of, packed):
    length = 128 * mesh[2] * (1 if mesh == (1, 1, 4) else 2)
    sample = Sample(packed(2, length, mean=150, padding=30), 2, 1, window, None)
    with mesh_of(*mesh):
        sample.check("splash")


# (mesh, length, window, soft tokens of an image, mean document, soft cap)
IMAGES = [
    ((1, 1, 1), 256, 100, 16, 200, None),
    ((1, 1, 1), 256, None, 100, 300, 2.0),
    ((1, 1, 2), 512, 150, 40, 500, None),  # images over the border of a shard
    ((1, 1, 2), 512, None, 40, 500, None),  # and of what is swapped
    ((1, 2, 4), 512, 200, 140, 600, None),  # longer than a shard
    ((1, 1, 4), 1024, None, 60, 2000, None),
]


@pytest.mark.parametrize(("mesh", "length", "window", "size", "mean", "soft_cap"), IMAGES)
def test_soft_tokens_see_all_of_their_image(
    mesh, length, window, size, mean, soft_cap, small_blocks, mesh_of, packed
):
    places = with_images(packed(2, length, seed=length, mean=mean, padding=20), size)
    with mesh_of(*mesh):
        Sample(places, 2, 1, window, soft_cap).check("splash")


@pytest.mark.parametrize("window", [100, None])
def test_in_bfloat16_it_stays_near_the_definition(window, small_blocks, mesh_of, packed):
    places = with_images(packed(2, 512, seed=1, mean=400), 40)
    with mesh_of(1, 1, 2):
        Sample(places, 2, 1, window, None, jnp.bfloat16, sharpness=16).check("splash", "bf16")


@pytest.mark.parametrize(
    ("keys", "block", "computed"),
    [(2048, 1024, 512), (3072, 1024, 512), (2560, 512, 512), (1152, 384, 384)],
)
def test_what_is_multiplied_at_one_time_is_large_first(keys, block, computed):
    sizes = splash_tables._block_sizes(1024, keys)
    assert (sizes.block_kv, sizes.block_kv_compute) == (block, computed)


def visited(tables) -> list[int]:
    """Blocks that each block of queries visits, forward; all of a key's, backward."""
    return tables.fwd_mask_info.block_mask.astype(bool).sum(axis=(0, 2)).tolist()


OPTIONS = {"soft_cap": None, "kept_as": "output", "interpret": True}


def test_the_tables_of_a_window_grow_with_the_row_and_those_of_all_keys_with_its_square(
    small_blocks,
):
    lengths = (512, 1024, 2048)
    near = [sum(visited(splash_tables.kernel_near(n, 0, 2, 128, **OPTIONS))) for n in lengths]
    everywhere = [sum(visited(splash_tables.kernel_to_all(n, 1, 2, **OPTIONS))) for n in lengths]
    assert near == [7, 15, 31]
    assert everywhere == [10, 36, 136]


@pytest.mark.parametrize(("length", "shards"), [(256, 2), (512, 4), (2048, 8), (512, 3)])
def test_every_shard_visits_as_many_blocks(length, shards, small_blocks):
    blocks = visited(splash_tables.kernel_to_all(length, shards, 2, **OPTIONS))
    here = length // 128
    work = [sum(blocks[shard * here : (shard + 1) * here]) for shard in range(shards)]
    assert len(set(work)) == 1
    assert sum(work) == (length * shards // 128) * (length * shards // 128 + 1) // 2


def test_a_length_that_lanes_do_not_divide_is_refused(mesh_of, packed):
    sample = Sample(packed(1, 100), 2, 1, 8, None)
    with mesh_of(), pytest.raises(UserError, match=r"^100 tokens of a row on each device: "):
        sample.check("splash")


@pytest.mark.parametrize("implementation", ["splash", "blocked"])
@pytest.mark.parametrize(("window", "gathers"), [(100, False), (200, False), (None, True)])
def test_under_a_window_no_keys_are_gathered(
    implementation, window, gathers, small_blocks, mesh_of, packed
):
    sample = Sample(packed(2, 512, mean=150), 2, 1, window, None)
    with mesh_of(1, 1, 4):
        program, arguments = sample.program(implementation)
        text = program.lower(*arguments).as_text()
    assert ("stablehlo.all_gather" in text) == gathers
