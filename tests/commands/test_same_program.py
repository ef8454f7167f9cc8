"""What plan compiles is what train runs: one program, to the letter."""

import jax
import pytest

from gemma_train.config import Distillation, Online, Priority, TokenSource, changed, load
from gemma_train.data.images.store import Head, write_head
from gemma_train.mesh import make_mesh
from gemma_train.planning.compiled import lower_step
from gemma_train.training import loop, run


@pytest.fixture
def trained(monkeypatch):
    """Trains a config on the mesh's devices; the text of the programs of its steps."""

    def train(config) -> list[str]:
        programs, make_step = [], loop.make_step

        def recorded(config):
            """The trainer's own step, whose program is kept when it is first called."""
            step = make_step(config)

            def call(*arguments):
                programs.append(step.trace(*arguments).lower().as_text())
                return step(*arguments)

            return call

        devices = jax.devices()[: config.mesh.devices]
        with monkeypatch.context() as patch:
            patch.setattr(loop, "make_step", recorded)
            patch.setattr(jax, "devices", lambda: devices)
            run.train(config)
        return programs

    return train


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=["one device", "eight"])
def test_plan_and_train_lower_the_same_program_for_the_quickstart(mesh, tmp_path, trained, corpus):
    replica, data, seq = mesh
    changes = {"mesh.replica": replica, "mesh.data": data, "mesh.seq": seq, "steps": 1}
    changes |= {"folder": str(tmp_path / "run"), "tensorboard": False}
    changes |= {"data.tokenizer": f"{corpus}/tokenizer.model"}
    changes |= {"data.train": (TokenSource(path=f"{corpus}/train"),)}
    changes |= {"data.held_out": (f"{corpus}/held_out",)}
    changes |= {"data.images.store": str(tmp_path / "images"), "evaluation.captions": 0}
    config = changed(load("configs/quickstart.py"), changes)
    vision = config.model.vision
    head = Head(
        encoder_sha256="none",
        encoder="none",
        side=vision.side,
        tokens=vision.tokens,
        width=vision.width,
    )
    write_head(config.data.images.store, head)
    programs = trained(config)
    planned = lower_step(config, make_mesh(config.mesh, jax.devices()[: config.mesh.devices]))
    assert programs == [planned.as_text()]
    assert programs[0].count("stablehlo.dot_general") > 30


def test_with_a_teacher_in_the_step_too(tmp_path, trained, write_config, finished_run):
    teacher = Online(weights=str(finished_run[0]), sharding="whole")
    changes = {"mesh.data": 2, "mesh.seq": 2, "steps": 1}
    changes |= {"loss": Distillation(teacher=teacher, sampler=Priority(candidates=16), chunk=64)}
    config = changed(load(write_config(tmp_path / "run")), changes)
    planned = lower_step(config, make_mesh(config.mesh, jax.devices()[:4]))
    assert trained(config) == [planned.as_text()]
