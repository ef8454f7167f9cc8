"""The search of a remat policy, against compilers that are functions of the bytes kept."""

import itertools
from dataclasses import replace

import pytest

from gemma_train.model.config import SAVABLE
from gemma_train.planning.compiled import Compiled, TooLarge
from gemma_train.planning.estimate import recomputed_flops
from gemma_train.planning.lean_remat import HBM_SHARE, HOST_SHARE, find_lean_remat
from gemma_train.planning.memory import kept_bytes
from gemma_train.planning.slices import Slices

GB = 10**9


@pytest.fixture
def search(pod_run):
    """Search a run of so many rows, with a compiler that takes `overhead` bytes for each kept."""

    def find(*, rows: int, plain: int, overhead: float = 1.2, offload: bool = False):
        config = pod_run(data__batch_rows=rows)
        slices = Slices.named(config.mesh.topology, config.mesh.slices)
        asked = []

        def compiler(candidate):
            asked.append(candidate)
            saved = candidate.compute.saved if candidate.compute.remat == "save_named" else ()
            needed = int(plain + overhead * kept_bytes(candidate, saved))
            if needed > slices.chip.usable_hbm_bytes:
                return TooLarge(
                    needed_bytes=needed,
                    available_bytes=slices.chip.usable_hbm_bytes,
                    seconds=0.0,
                )
            return Compiled(peak_bytes=needed, argument_bytes=0, program="", seconds=0.0)

        found = find_lean_remat(config, slices, compiler, offload=offload)
        if found is not None:
            assert found.tried == len(asked)
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


def test_a_step_that_does_not_fit_at_all_has_no_policy(search):
    assert search(rows=64, plain=17 * GB)[0] is None
    assert search(rows=64, plain=int(0.95 * 16 * 2**30))[0] is None
