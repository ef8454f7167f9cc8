"""What a sweep is checked for when it is made."""

import pytest

from gemma_train.config import EXAMPLE
from gemma_train.errors import UserError
from gemma_train.sweeps import AtEnd, Run, Sweep, choices, product, runs_of, seeds

RUNS = runs_of(EXAMPLE, product(choices("steps", 10, 20), seeds(2)))


def run(name, **labels):
    return Run(name=name, config=EXAMPLE, labels=labels)


def test_runs_get_folders_below_the_sweeps():
    sweep = Sweep(folder="runs/mine", runs=RUNS)
    assert sweep.placed[3].config.folder == "runs/mine/steps=20/seed=1"
    assert sweep.placed[3].config.steps == 20
    assert sweep.placed[3].tokens == 20 * EXAMPLE.step_tokens


def test_a_baseline_is_a_group_or_an_unlabelled_run():
    assert Sweep(folder="x", runs=RUNS, baseline="steps=10").baseline == "steps=10"
    assert Sweep(folder="x", runs=(run("teacher"), *RUNS), baseline="teacher").baseline


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"runs": ()}, "runs are none"),
        ({"runs": (*RUNS, RUNS[0])}, "two runs are named 'steps=10/seed=0'"),
        ({"runs": (run("a"), run("a/b"))}, "run 'a/b' would lie in the folder of 'a'"),
        ({"runs": (run("a", k=1), run("b", k=1))}, "'a' and 'b' have the same labels"),
        ({"folder": ""}, "folder is empty"),
        ({"folder": "gs://bucket/sweep"}, "local folder"),
        ({"baseline": "steps=11"}, "choose one of 'steps=10', 'steps=20'"),
        ({"plots": (AtEnd(x="rate"),)}, "choose one of 'steps'"),
        ({"plots": (AtEnd(x="seed"),)}, "choose one of 'steps'"),
        ({"plots": (AtEnd(x="steps", against_baseline=True),)}, "needs a baseline"),
    ],
)
def test_a_mistake_is_told_in_one_line(wrong, told):
    with pytest.raises(UserError) as refused:
        Sweep(**{"folder": "runs/mine", "runs": RUNS, **wrong})
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "..", "../up", "/root", "a//b", "a b", "a/.hidden", "a/"])
def test_a_name_that_is_no_folder_below_the_sweeps_is_refused(name):
    with pytest.raises(UserError, match="a name is a folder's"):
        run(name)
