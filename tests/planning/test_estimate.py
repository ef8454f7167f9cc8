"""The roofline: what each part follows, and what a step is made of."""

from dataclasses import replace

import pytest

from gemma_train.config import Distillation, Online, Stored
from gemma_train.errors import UserError
from gemma_train.metrics.peak import peak_flops
from gemma_train.model.flops import training_flops_per_token
from gemma_train.planning.estimate import (
    Assumptions,
    estimate_step,
    hbm_bytes,
    recomputed_flops,
    target_flops,
    teacher_flops,
)
from gemma_train.planning.memory import layer_parameters, state_bytes
from gemma_train.planning.slices import Slices
from gemma_train.planning.traffic import (
    Traffic,
    compiled_traffic,
    expected_gathers,
    expected_traffic,
    teacher_gathers,
)


@pytest.fixture(scope="module")
def estimate(pod_run):
    def make(traffic=None, *, assume=None, **changes):
        config = pod_run(**{"compute__remat": "none", **changes})
        return estimate_step(
            config,
            Slices.named(config.mesh.topology, config.mesh.slices),
            state_bytes(config),
            traffic or Traffic(ici_bytes=0.0, dcn_bytes=0.0),
            assume=assume or Assumptions(),
        )

    return make


def test_a_step_that_only_computes_takes_its_flops_over_the_rate(estimate, pod_run):
    found = estimate(assume=Assumptions(compute_efficiency=1.0))
    config = pod_run()
    flops = training_flops_per_token(config.model, 8192) * config.step_tokens / 32
    assert found.step_seconds == found.compute_seconds
    assert found.compute_seconds == pytest.approx(flops / peak_flops("TPU v5 lite"))
    assert found.mfu == pytest.approx(1.0)
    assert found.bound == "compute"


def test_recomputed_flops_take_time_and_are_no_use(estimate, pod_run):
    plain, twice = estimate(), estimate(compute__remat="full")
    config = pod_run(compute__remat="full")
    model = training_flops_per_token(config.model, config.data.sequence_length)
    more = 1 + recomputed_flops(config) / model
    assert twice.compute_seconds == pytest.approx(more * plain.compute_seconds)
    assert twice.mfu < plain.mfu
    assert recomputed_flops(pod_run(compute__remat="none")) == 0


def test_a_teachers_candidates_take_time_and_are_no_use(estimate, pod_run):
    config = pod_run()
    loss = Distillation(teacher=Stored(folder="none", weights="none"))
    vocabulary, width = config.model.vocabulary, config.model.width
    products = 2 * 256 * vocabulary
    assert target_flops(config) == 0
    assert target_flops(replace(config, loss=loss)) == products
    two_softmaxes = replace(loss, temperature=2.0, hard_label_weight=0.5)
    again = 6 * vocabulary * width
    assert target_flops(replace(config, loss=two_softmaxes)) == products + again
    without = replace(loss, temperature=2.0)
    assert target_flops(replace(config, loss=without)) == products
    plain, taught = estimate(), estimate(loss=loss)
    model = training_flops_per_token(config.model, config.data.sequence_length)
    more = 1 + products / model
    assert taught.compute_seconds == pytest.approx(more * plain.compute_seconds)
    assert taught.mfu < plain.mfu


def test_a_second_pass_over_the_logits_gathers_the_tokens_again(pod_run):
    config = pod_run()
    once = Distillation(teacher=Stored(folder="none", weights="none"), temperature=2.0)
    twice = replace(once, hard_label_weight=0.5)
    one, two = (expected_gathers(replace(config, loss=loss)) for loss in (once, twice))
    assert (one.tokens, 2 * one.tokens) == (expected_gathers(config).tokens, two.tokens)
    assert one.candidates == two.candidates


def test_what_does_not_overlap_is_added(estimate):
    traffic = Traffic(ici_bytes=45e9 * 3, dcn_bytes=3.125e9)  # 3 s on one link, 1 s between slices
    compute = estimate().step_seconds
    for overlapped, expected in ((0.0, compute + 4), (0.5, max(compute, 2) + 2), (1.0, 4)):
        found = estimate(traffic, assume=Assumptions(overlapped=overlapped))
        assert (found.ici_seconds, found.dcn_seconds) == (3.0, 1.0)
        assert found.step_seconds == pytest.approx(expected)
    assert found.bound == "ICI"


def test_a_torus_has_both_ways_round(estimate):
    traffic = Traffic(ici_bytes=45e9, dcn_bytes=0.0)
    line = estimate(traffic).ici_seconds
    changes = {"mesh__topology": "v5e:16x16", "mesh__data": 256, "data__batch_rows": 512}
    assert estimate(traffic, **changes).ici_seconds == pytest.approx(line / 2)


def test_an_arithmetic_without_a_published_rate_is_refused(estimate):
    with pytest.raises(UserError, match="--compute.dtype bfloat16"):
        estimate(compute__dtype="float32")


@pytest.mark.parametrize("wrong", [{"compute_efficiency": 0.0}, {"overlapped": 1.5}])
def test_assumptions_are_shares(wrong):
    with pytest.raises(UserError, match="^assume."):
        Assumptions(**wrong)


def test_between_slices_only_the_sum_over_replica_passes(pod_run):
    config = pod_run()
    state = state_bytes(config)
    expected = expected_traffic(config, state)
    assert expected.dcn_bytes == pytest.approx(state.gradients)  # 2 (n - 1) / n of two slices
    alone = expected_traffic(pod_run(mesh__slices=1), state)
    assert alone.dcn_bytes == 0
    assert alone.ici_bytes == pytest.approx(expected.ici_bytes + state.gradients)


def test_microbatches_gather_the_weights_again(pod_run):
    state = state_bytes(pod_run())
    once = expected_traffic(pod_run(), state).ici_bytes
    assert 1.5 * once < expected_traffic(pod_run(accumulation=2), state).ici_bytes < 2 * once


def test_keys_are_gathered_along_seq_for_global_layers_alone(pod_run):
    near = pod_run(mesh__data=4, mesh__seq=4)  # 2,048 tokens a chip, windows of 512
    far = pod_run(mesh__data=4, mesh__seq=4, model__window=4096)
    model, tokens = near.model, near.step_tokens / near.mesh.devices
    of_a_layer = 2 * 2 * model.key_value_heads * model.head_dimension * tokens * 4 * 2
    assert expected_gathers(near).keys == of_a_layer * model.kinds.count("global")
    assert expected_gathers(far).keys == expected_gathers(near).keys
    assert expected_gathers(pod_run()).keys == 0


def test_a_window_takes_its_own_length_from_neighbours_and_images_theirs(pod_run):
    def sent(**changes) -> float:
        run = pod_run(mesh__data=4, mesh__seq=4, **changes)
        return expected_traffic(run, state_bytes(run)).ici_bytes

    run = pod_run(mesh__data=4, mesh__seq=4)
    model, rows = run.model, run.data.batch_rows / (run.mesh.replica * run.mesh.data)
    of_a_key = 3 * 2 * 2 * model.key_value_heads * model.head_dimension  # two passes, one back
    of_keys = rows * of_a_key * model.kinds.count("local")
    assert sent(model__window=4096) - sent() == pytest.approx(of_keys * (4096 - 512))
    # A row has no more than 6,144 keys that are another chip's.
    assert sent(model__window=8000) - sent() == pytest.approx(of_keys * (6144 - 512))


def test_compiled_traffic_is_what_each_network_carries(total_of):
    totals = [total_of("ici", 5.0), total_of("dcn", 2.0), total_of("ici", 1.0)]
    found = compiled_traffic(totals, host_bytes=3.0)
    assert found == Traffic(ici_bytes=6.0, dcn_bytes=2.0, host_bytes=3.0)


def test_a_teacher_in_the_step_is_counted_and_one_beforehand_is_not(pod_run):
    plain = pod_run()
    larger = replace(plain.model, width=2560, layers=34)

    def taught(teacher):
        return replace(plain, loss=Distillation(teacher=teacher))

    split = taught(Online(weights="nowhere", model=larger))
    whole = taught(Online(weights="nowhere", model=larger, sharding="whole"))
    stored = taught(Stored(folder="nowhere", weights="nowhere"))
    assert teacher_flops(plain) == teacher_flops(stored) == 0
    assert teacher_flops(split) == teacher_flops(whole)
    assert teacher_flops(split) == pytest.approx(training_flops_per_token(larger, 8192) / 3)
    sent = [expected_traffic(c, state_bytes(c)).ici_bytes for c in (plain, stored, whole, split)]
    soft = expected_gathers(stored).candidates
    assert soft == expected_gathers(split).candidates
    assert soft == plain.step_tokens / 32 * 4 * (256 * (4 + 4) + 4)
    assert sent[1] == sent[2] == pytest.approx(sent[0] + soft * 3 / 4)
    assert sent[2] < sent[3]
    come = [expected_traffic(c, state_bytes(c)).host_bytes for c in (plain, stored, whole, split)]
    assert come == [0, plain.step_tokens / 32 * 256 * (4 + 4), 0, 0]
    moved = [hbm_bytes(c, state_bytes(c)) for c in (plain, stored, whole, split)]
    assert moved[0] < moved[1] < moved[2] < moved[3]
    assert teacher_gathers(plain).total == teacher_gathers(whole).total == 0
    assert teacher_gathers(split).layers == larger.layers * 2 * layer_parameters(larger) * 1.25
