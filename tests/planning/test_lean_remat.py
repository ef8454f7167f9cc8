"""The search of a remat policy, against compilers that are functions of the bytes kept."""

import itertools
from dataclasses import replace

import jax
import pytest

from gemma_train.model.config import SAVABLE
from gemma_train.planning import text
from gemma_train.planning.compiled import Compiled, TooLarge
from gemma_train.planning.estimate import recomputed_flops
from gemma_train.planning.lean_remat import HBM_SHARE, HOST_SHARE, MOST_TRIED, find_lean_remat
from gemma_train.planning.memory import kept_bytes
from gemma_train.planning.slices import Slices

GB = 10**9


@pytest.fixture
def search(pod_run):
    """Search a run of so many rows, with a compiler of its own idea of what a policy takes.

    A kept byte takes `overhead` bytes of the chip, and an offloaded one `staging`. It fails on a
    policy that offloads one of `fails`.
    """

    def find(
        *,
        rows: int,
        plain: int,
        overhead: float = 1.2,
        staging: float = 0.0,
        offload: bool = False,
        fails: tuple[str, ...] = (),
    ):
        config = pod_run(data__batch_rows=rows)
        slices = Slices.named(config.mesh.topology, config.mesh.slices)
        asked = []

        def compiler(candidate):
            compute = candidate.compute
            needed = plain
            if compute.remat == "save_named":
                needed += int(overhead * kept_bytes(candidate, compute.saved))
                needed += int(staging * kept_bytes(candidate, compute.offloaded))
            asked.append(candidate)
            if set(fails).intersection(compute.offloaded):
                raise jax.errors.JaxRuntimeError("INTERNAL: bitcast\nwhere it was")
            if needed > slices.chip.usable_hbm_bytes:
                return TooLarge(
                    needed_bytes=needed,
                    available_bytes=slices.chip.usable_hbm_bytes,
                    seconds=0.0,
                )
            return Compiled(peak_bytes=needed, argument_bytes=0, program="", seconds=0.0)

        found = find_lean_remat(config, slices, compiler, offload=offload)
        assert found.tried == len(asked) <= MOST_TRIED
        assert len(set(asked)) == len(asked), "or else a config was compiled twice"
        assert found.compiled == compiler(found.config)
        return found, slices

    return find


def test_where_there_is_room_nothing_is_recomputed(search):
    found, _ = search(rows=32, plain=GB)
    assert recomputed_flops(found.config) == 0
    assert found.tried == 2


def test_what_it_finds_fits_and_no_policy_with_less_recomputation_would(search):
    found, slices = search(rows=64, plain=2 * GB)
    limit = HBM_SHARE * slices.chip.hbm_bytes
    assert recomputed_flops(found.config) > 0
    assert 2 * GB < found.compiled.peak_bytes <= limit
    compute = found.config.compute
    for size in range(len(SAVABLE) + 1):
        for saved in itertools.combinations(SAVABLE, size):
            other = replace(found.config, compute=replace(compute, saved=saved))
            if recomputed_flops(other) < recomputed_flops(found.config):
                assert 2 * GB + 1.2 * kept_bytes(other, saved) > limit


def test_products_that_take_less_than_was_thought_are_tried_once_one_policy_fits(search):
    found, slices = search(rows=64, plain=2 * GB, overhead=0.6)
    limit = HBM_SHARE * slices.chip.hbm_bytes
    assert 2 < found.tried < MOST_TRIED
    for size in range(len(SAVABLE) + 1):
        for saved in itertools.combinations(SAVABLE, size):
            other = replace(
                found.config, compute=replace(found.config.compute, remat="save_named", saved=saved)
            )
            if recomputed_flops(other) < recomputed_flops(found.config):
                assert 2 * GB + 0.6 * kept_bytes(other, saved) > limit


def test_the_host_takes_what_the_chip_cannot_hold_and_no_more(search):
    alone, _ = search(rows=64, plain=2 * GB)
    found, slices = search(rows=64, plain=2 * GB, offload=True)
    assert recomputed_flops(found.config) < recomputed_flops(alone.config)
    offloaded = kept_bytes(found.config, found.config.compute.offloaded)
    assert 0 < offloaded <= HOST_SHARE * slices.chip.host_bytes


def test_a_step_that_fits_only_when_all_is_recomputed_stays_so(search):
    found, _ = search(rows=64, plain=int(0.9 * 16 * 2**30) - 1)
    assert found.config.compute.remat == "full"
    assert recomputed_flops(found.config) > 0


@pytest.mark.parametrize("staging", [0.02, 0.2, 0.5, 1.0])
def test_what_offloaded_products_take_of_the_chip_is_learned(staging, search):
    found, slices = search(rows=64, plain=2 * GB, staging=staging, offload=True)
    alone, _ = search(rows=64, plain=2 * GB)
    assert found.fits
    assert found.compiled.peak_bytes <= HBM_SHARE * slices.chip.hbm_bytes
    assert recomputed_flops(found.config) <= recomputed_flops(alone.config)


def test_where_all_that_is_offloaded_comes_back_whole_the_search_ends_soon(search):
    found, _ = search(rows=256, plain=14 * GB, overhead=3.0, staging=3.0, offload=True)
    assert found.fits
    assert found.tried <= MOST_TRIED


def test_a_policy_on_which_the_compiler_fails_is_told_and_passed_over(search):
    whole, _ = search(rows=64, plain=2 * GB, offload=True)
    culprit = whole.config.compute.offloaded[0]
    found, _ = search(rows=64, plain=2 * GB, offload=True, fails=(culprit,))
    assert found.fits
    assert found.config.compute.remat == "save_named"
    assert culprit not in found.config.compute.offloaded
    assert found.failed
    for failed in found.failed:
        assert failed.message == "INTERNAL: bitcast"
        assert culprit in failed.compute.offloaded
        assert any(failed.message in line and culprit in line for line in text.lean_remat(found))


@pytest.mark.parametrize("plain", [17 * GB, int(0.95 * 16 * 2**30)])
def test_a_step_that_does_not_fit_at_all_stays_fully_recomputed_and_says_so(plain, search):
    found, _ = search(rows=64, plain=plain)
    assert not found.fits
    assert found.tried == 1
    assert found.config.compute.remat == "full"
