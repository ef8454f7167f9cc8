"""What plan compiles is what train runs: one program, to the letter."""

import jax
import pytest

from gemma_train.config import TokenSource, load
from gemma_train.mesh import make_mesh
from gemma_train.planning.compiled import lower_step
from gemma_train.planning.fitting import changed_config
from gemma_train.training import loop


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=["one device", "eight"])
def test_plan_and_train_lower_the_same_program_for_the_quickstart(
    mesh, tmp_path, monkeypatch, corpus
):
    replica, data, seq = mesh
    changes = {"mesh.replica": replica, "mesh.data": data, "mesh.seq": seq, "steps": 1}
    changes |= {"folder": str(tmp_path / "run"), "tensorboard": False}
    changes |= {"data.tokenizer": f"{corpus}/tokenizer.model"}
    changes |= {"data.train": (TokenSource(path=f"{corpus}/train"),)}
    changes |= {"data.held_out": (f"{corpus}/held_out",)}
    config = changed_config(load("configs/quickstart.py"), changes)
    trained = []
    make_step = loop.make_step

    def recorded(config):
        """The trainer's own step, whose program is kept when it is first called."""
        step = make_step(config)

        def call(*arguments):
            trained.append(step.trace(*arguments).lower().as_text())
            return step(*arguments)

        return call

    monkeypatch.setattr(loop, "make_step", recorded)
    devices = jax.devices()[: config.mesh.devices]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    loop.train(config)
    planned = lower_step(config, make_mesh(config.mesh, devices)).as_text()
    assert len(trained) == 1
    assert planned == trained[0]
    assert planned.count("stablehlo.dot_general") > 30
