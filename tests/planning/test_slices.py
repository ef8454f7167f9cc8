"""Slices by name: what exists, what does not, and what is proposed instead."""

import subprocess
import sys

import pytest

from gemma_train.errors import UserError
from gemma_train.mesh import MeshConfig
from gemma_train.planning.slices import Slices


@pytest.mark.parametrize(
    ("name", "count", "chips"),
    [
        ("v5e:16x16", 2, 512),
        ("v5e:16x16", 8, 2048),
        ("v4:8x16x16", 3, 6144),
        ("v5p:16x16x24", 1, 6144),
        ("v6e:1x1", 1, 1),
        ("v4:2x2x1", 1, 4),
    ],
)
def test_published_and_small_slices_have_their_chips(name, count, chips):
    slices = Slices.named(name, count)
    assert (slices.name, slices.chips) == (name, chips)


@pytest.mark.parametrize(
    ("name", "count", "why", "instead"),
    [
        ("v4:16x16x24", 1, "a v4 pod has 4,096 chips, not 6,144", "v4:8x16x16 with mesh.slices 3"),
        ("v5p:16x20x28", 1, "at most 6,144 chips, not 8,960", "v5p:8x20x28 with mesh.slices 2"),
        ("v5e:16x32", 1, "a v5e pod has 256 chips", "v5e:16x16 with mesh.slices 2"),
        ("v5e:4x4x4", 1, "v5e slices have 2 dimensions", "v5e:8x8"),
        ("v5e:3x5", 2, "v5e slices are 1x1, 2x2", "v5e:4x4 with mesh.slices 2"),
        ("v5p:6x6x6", 1, "multiples of 4", "v5p:4x4x12"),
        ("v5p:16x8x16", 1, "from the shortest to the longest", "v5p:8x16x16"),
        ("v9:4x4", 1, "'v9:4x4'", "v4, v5e, v5p, v6e"),
        ("v5e", 1, "'v5e'", "v5e:16x16"),
        (None, 1, "not set", "--topology"),
    ],
)
def test_a_slice_that_there_is_not_is_refused_in_one_line_with_another(name, count, why, instead):
    with pytest.raises(UserError, match="^mesh.topology is ") as refused:
        Slices.named(name, count)
    told = str(refused.value)
    assert why in told
    assert instead in told
    assert "\n" not in told


def test_what_is_proposed_is_accepted():
    for name in ("v4:16x16x24", "v5p:16x20x28", "v5e:16x32", "v5p:6x6x6", "v4:24x24x24"):
        with pytest.raises(UserError) as refused:
            Slices.named(name)
        words = str(refused.value).split(": try ")[1].split()
        assert Slices.named(words[0], int(words[-1]) if len(words) > 1 else 1).chips


def test_a_mesh_that_does_not_multiply_to_the_chips_is_refused():
    slices = Slices.named("v5e:4x4", 2)
    slices.check(MeshConfig(replica=2, data=4, seq=4))
    with pytest.raises(UserError, match="= 64 chips, but 2 x v5e:4x4 have 32"):
        slices.check(MeshConfig(replica=4, data=4, seq=4))


def test_links_wrap_around_only_where_a_dimension_is_whole():
    assert Slices.named("v5e:16x16").is_torus
    assert not Slices.named("v5e:8x16").is_torus
    assert Slices.named("v5p:4x4x8").is_torus
    assert not Slices.named("v5p:2x4x4").is_torus


def test_slices_are_known_without_jax():
    program = (
        "import sys, gemma_train.planning.slices; assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
