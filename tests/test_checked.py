"""A config of wrong kinds is refused in a line: the field, the value and what would do."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from gemma_train.checked import check_fields
from gemma_train.config import (
    EXAMPLE,
    ComputeConfig,
    Distillation,
    MeshConfig,
    NextToken,
    Online,
    Stored,
    TokenSource,
    TopK,
    read_record,
    record,
)
from gemma_train.errors import UserError

TEACHER = Online(weights="runs/x")


def taught(**values):
    return {"loss": Distillation(**{"teacher": TEACHER, **values})}


def read(**values):
    return {"data": replace(EXAMPLE.data, **values)}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (taught(student="candidate"), "loss.student is 'candidate': choose 'full' or 'candidates'"),
        (taught(teacher="runs/x"), "loss.teacher is 'runs/x': choose Stored(...) or Online(...)"),
        (taught(temperature=float("inf")), "loss.temperature is inf: give a finite number"),
        (taught(temperature=np.float64(2)), "loss.temperature is np.float64(2.0): give a finite n"),
        (taught(temperature=True), "loss.temperature is True: give a finite number"),
        (taught(seed=1.5), "loss.seed is 1.5: give an integer"),
        (taught(sampler="topk"), "loss.sampler is 'topk': choose TopK(...), Gumbel(...), Multin"),
        (taught(sampler=TopK), "loss.sampler is the class TopK itself: choose TopK(...), Gumbel("),
        (taught(sampler=TopK(recall=True)), "loss.sampler.recall is True: give a finite number"),
        (
            taught(teacher=replace(TEACHER, sharding="hole")),
            "loss.teacher.sharding is 'hole': choose 'split' or 'whole'",
        ),
        (
            taught(teacher=Stored(folder="a", weights="b", dtype="bf16")),
            "loss.teacher.dtype is 'bf16': choose 'float32' or 'bfloat16'",
        ),
        (
            taught(teacher=replace(TEACHER, model="gemma")),
            "loss.teacher.model is 'gemma': choose GemmaConfig(...) or None",
        ),
        ({"loss": "x"}, "loss is 'x': choose NextToken(...) or Distillation(...)"),
        ({"loss": NextToken(chunk=7.0)}, "loss.chunk is 7.0: give an integer"),
        (
            {"compute": ComputeConfig(remat="ful")},
            "compute.remat is 'ful': choose 'none', 'full' or 'save_named'",
        ),
        (
            {"compute": ComputeConfig(dtype="float16")},
            "compute.dtype is 'float16': choose 'bfloat16' or 'float32'",
        ),
        ({"compute": ComputeConfig(saved=["gate"])}, "compute.saved is ['gate']: give a tuple"),
        ({"mesh": MeshConfig(topology=4)}, "mesh.topology is 4: give a string or None"),
        ({"mesh": MeshConfig(data=2.0)}, "mesh.data is 2.0: give an integer"),
        ({"steps": "5"}, "steps is '5': give an integer"),
        ({"steps": 10**5_000}, "steps is an integer of 16610 bits, more than 63: give an integer"),
        (taught(temperature=10**400), "loss.temperature is an integer of 1329 bits, more than 63"),
        ({"tensorboard": 1}, "tensorboard is 1: choose True or False"),
        (
            read(train=(TokenSource(path="x", taught="no"),)),
            "data.train[0].taught is 'no': choose True or False",
        ),
        (read(held_out=("x", 3)), "data.held_out[1] is 3: give a string"),
        (
            {"model": replace(EXAMPLE.model, pattern=("local", "globl"))},
            "model.pattern[1] is 'globl': choose 'local' or 'global'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_of_another_kind_is_refused_in_a_line(changes, line):
    with pytest.raises(UserError) as found:
        replace(EXAMPLE, **changes)
    assert str(found.value).startswith(line)
    assert "\n" not in str(found.value)


def test_an_integer_is_a_number_too():
    assert replace(EXAMPLE, **taught(temperature=2)).loss.temperature == 2


def test_a_tuple_of_declared_length_has_that_length():
    @dataclass(frozen=True)
    class Pair:
        sides: tuple[int, str]

    check_fields(Pair((1, "a")))
    for sides, line in (((1,), r"of\.sides is \(1,\): give a tuple"), (("a", "b"), r"sides\[0\]")):
        with pytest.raises(UserError, match=line):
            check_fields(Pair(sides), "of")


def test_a_record_of_wrong_kinds_is_refused_by_its_file(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(record(EXAMPLE).replace("schedule='cosine'", "schedule='cosin'"))
    with pytest.raises(UserError, match=r"config\.py.*optimizer\.schedule is 'cosin': choose"):
        read_record(str(tmp_path))
