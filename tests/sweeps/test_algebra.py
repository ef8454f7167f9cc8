"""The laws of the algebra, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from gemma_train.config import EXAMPLE, NextToken
from gemma_train.errors import UserError
from gemma_train.sweeps import chain, choices, product, runs_of, seeds, variant, zipped

RATES = choices("optimizer.peak_lr", 1e-3, 1e-2, label="rate")
STEPS = choices("steps", 10, 20, 30)
SMALL = variant("size", "small", lambda run: replace(run, steps=5), lambda run: run)


def labels(variants):
    return [dict(one.labels) for one in variants]


def test_a_product_has_every_combination_the_last_factor_fastest():
    assert labels(product(RATES, seeds(2))) == [
        {"rate": 1e-3, "seed": 0},
        {"rate": 1e-3, "seed": 1},
        {"rate": 1e-2, "seed": 0},
        {"rate": 1e-2, "seed": 1},
    ]
    assert len(product(RATES, STEPS, SMALL, seeds(4))) == 2 * 3 * 1 * 4


def test_products_are_associative_with_the_base_alone_as_their_unit():
    assert product(product(RATES, STEPS), seeds(2)) == product(RATES, product(STEPS, seeds(2)))
    assert product(product(), RATES) == product(RATES, product()) == RATES
    assert product(RATES, ()) == ()
    (base,) = product()
    assert base(EXAMPLE) == EXAMPLE


def test_a_chain_is_associative_and_a_product_distributes_over_one_on_its_left():
    assert chain(chain(RATES, STEPS), SMALL) == chain(RATES, chain(STEPS, SMALL))
    assert chain(RATES, ()) == RATES
    assert product(chain(RATES, STEPS), seeds(2)) == chain(
        product(RATES, seeds(2)), product(STEPS, seeds(2))
    )


def test_zipped_goes_side_by_side_and_refuses_unequal_lengths():
    both = zipped(RATES, choices("data.batch_rows", 16, 32))
    assert labels(both) == [{"rate": 1e-3, "batch_rows": 16}, {"rate": 1e-2, "batch_rows": 32}]
    with pytest.raises(UserError, match=r"factors of \[2, 3\] variants"):
        zipped(RATES, STEPS)


def test_changes_are_done_in_order():
    (one,) = product(SMALL, variant("twice", True, lambda run: replace(run, steps=2 * run.steps)))
    assert one(EXAMPLE).steps == 10
    (other,) = product(variant("twice", True, lambda run: replace(run, steps=2 * run.steps)), SMALL)
    assert other(EXAMPLE).steps == 5


def test_a_seed_draws_the_parameters_and_the_order_of_the_rows():
    drawn = [one(EXAMPLE) for one in seeds(2, first=7)]
    assert [(run.seed, run.data.shuffle_seed) for run in drawn] == [(7, 7), (8, 8)]
    assert replace(drawn[0], seed=8, data=drawn[1].data) == drawn[1]


def test_a_choice_sets_its_field_and_nothing_else():
    low, high = (one(EXAMPLE) for one in RATES)
    assert (low.optimizer.peak_lr, high.optimizer.peak_lr) == (1e-3, 1e-2)
    assert replace(low, optimizer=EXAMPLE.optimizer) == EXAMPLE


def test_whole_configs_are_chosen_by_names():
    losses = choices("loss", NextToken(), NextToken(z_loss=1e-4), names=("plain", "z"))
    assert labels(losses) == [{"loss": "plain"}, {"loss": "z"}]
    assert losses[1](EXAMPLE).loss.z_loss == 1e-4
    with pytest.raises(UserError, match="names="):
        choices("loss", NextToken())


def test_numbers_of_numpy_become_plain_ones():
    (one, _) = choices("optimizer.peak_lr", *np.geomspace(1e-3, 1e-2, 2))
    assert type(one.labels["peak_lr"]) is float
    assert type(one(EXAMPLE).optimizer.peak_lr) is float


def test_runs_are_named_by_their_labels_with_a_folder_for_each_group():
    runs = runs_of(EXAMPLE, product(RATES, SMALL, seeds(2)))
    assert [run.name for run in runs[1:3]] == [
        "rate=0.001,size=small/seed=1",
        "rate=0.01,size=small/seed=0",
    ]
    assert [run.group for run in runs[1:3]] == ["rate=0.001,size=small", "rate=0.01,size=small"]
    assert [run.name for run in runs_of(EXAMPLE, product())] == ["base"]
    assert [run.group for run in runs_of(EXAMPLE, seeds(2))] == ["all", "all"]
    (odd,) = runs_of(EXAMPLE, variant("loss", "top k / 256"))
    assert odd.name == "loss=top-k-256"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: product(RATES, RATES), "two factors are both labelled 'rate'"),
        (lambda: choices("steps"), "choices of 'steps' are none"),
        (lambda: choices("steps", 1, 2, names=("a",)), "2 values and 1 names"),
        (lambda: seeds(0), "seeds is 0"),
        (lambda: variant("loss", [1]), "is shown as [1]"),
        (
            lambda: runs_of(EXAMPLE, choices("optimizer.peak_lrr", 1.0)),
            "'optimizer.peak_lrr' is no field of a run: no 'peak_lrr' here, did you mean 'peak_lr'",
        ),
        (lambda: runs_of(EXAMPLE, choices("steps.more", 1)), "'steps.more' is no field of a run"),
        (lambda: runs_of(EXAMPLE, choices("steps", 0)), "steps is 0"),
    ],
)
def test_a_mistake_is_told_in_one_line(make, told):
    with pytest.raises(UserError) as refused:
        make()
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
