from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from etils import epath

from gemma_train import config as configs
from gemma_train.config import (
    Dense,
    Distillation,
    MeshConfig,
    Online,
    OptimizerConfig,
    RunConfig,
    TopK,
    changed,
    load,
    read_model_record,
    read_record,
    record,
)
from gemma_train.data.recipe import load_recipe
from gemma_train.drift import differences
from gemma_train.errors import UserError
from gemma_train.model import sizes
from gemma_train.zero3 import split

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
TEXT = str(FILES[0].parent / "quickstart_text.py")
NAMES = vars(configs)


def test_there_is_a_config_for_the_quickstart_and_for_each_published_size():
    published = {name.lower() for name in dir(sizes) if name.startswith("GEMMA")}
    long = {f"gemma3_{size}_long" for size in ("4b", "12b", "27b")}
    quickstarts = {"quickstart", "quickstart_text", "distilled_quickstart"}
    toys = {"verses_512", "verses_4096"}
    assert {file.stem for file in FILES} == {*quickstarts, *toys, *published, *long}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_is_restored_from_its_repr_and_from_its_record(file, tmp_path):
    config = load(str(file))
    assert eval(repr(config), NAMES) == config
    (tmp_path / "config.py").write_text(record(config))
    assert read_record(str(tmp_path)) == config
    assert load(str(tmp_path / "config.py")) == config


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_trains_the_size_it_is_named_after_on_a_mesh_that_splits_it(file):
    config = load(str(file))
    if "quickstart" in file.stem or "verses" in file.stem:
        return
    model = getattr(sizes, file.stem.upper().removesuffix("_LONG"))
    if file.stem.endswith("_long"):
        model = replace(model, context=131_072, global_rope_factor=8.0)
    assert config.model == model
    axes = config.mesh.axis_sizes
    spec = split("vd", (config.model.vocabulary, config.model.width), axes)
    used = {axis for part in spec for axis in (part if isinstance(part, tuple) else [part]) if axis}
    assert used == {axis for axis in axes if axis != "replica" and axes[axis] > 1}


@pytest.mark.parametrize(
    ("stem", "replica", "data", "seq", "tokens"),
    [
        ("gemma3_1b", 2, 16, 16, 2e12),
        ("gemma3_4b", 8, 16, 16, 4e12),
        ("gemma3_12b", 24, 16, 16, 12e12),
        ("gemma3_27b", 32, 24, 8, 14e12),
    ],
)
def test_gemma_3_has_the_mesh_and_the_tokens_of_its_report(stem, replica, data, seq, tokens):
    config = load(next(str(file) for file in FILES if file.stem == stem))
    assert (config.mesh.replica, config.mesh.data, config.mesh.seq) == (replica, data, seq)
    assert config.data.sequence_length == 32_768
    assert config.steps * config.step_tokens == pytest.approx(tokens, rel=1e-5)


@pytest.mark.parametrize("stem", ["gemma3_4b", "gemma3_12b", "gemma3_27b"])
def test_the_stage_to_131072_tokens_has_the_axes_and_the_step_of_the_pretraining(stem):
    pretrained, long = (load(str(FILES[0].parent / f"{stem}{end}.py")) for end in ("", "_long"))
    assert long.data.sequence_length == 131_072
    assert (long.initial_weights, long.folder) == (pretrained.folder, f"{pretrained.folder}_long")
    assert pretrained.step_tokens <= long.step_tokens <= 4 / 3 * pretrained.step_tokens
    assert (long.mesh.data, long.mesh.seq) == (pretrained.mesh.data, pretrained.mesh.seq)
    assert long.mesh.replica < pretrained.mesh.replica
    assert long.data.batch_rows == long.mesh.replica * long.mesh.data  # one a shard of positions
    assert 131_072 // long.mesh.seq >= long.model.window  # a neighbour's keys are enough


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_data_of_a_config_is_what_the_recipes_of_its_name_write(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parents[1])
    config = load(str(file))
    (tmp_path / "data_recipes").symlink_to(file.parents[1] / "data_recipes")
    monkeypatch.chdir(tmp_path)  # a recipe may write what it reads
    name = file.stem.removeprefix("distilled_").split("_")[0]
    names = [name, f"{name}_images"] if config.data.images else [name]
    names += [f"{name}_long"] if "long" in file.stem else []
    recipes = [load_recipe(str(file.parents[1] / f"data_recipes/{one}.py")) for one in names]
    for recipe in recipes:
        tokenizer = recipe.tokenizer
        path = tokenizer if isinstance(tokenizer, str) else tokenizer.path
        assert path == config.data.tokenizer
    folders = [recipe.folder for recipe in recipes]
    assert [source.path for source in config.data.train] == [f"{one}/train" for one in folders]
    own = [folder for folder in folders if not folder.endswith("_long")]  # long documents are in it
    assert config.data.held_out == tuple(f"{one}/held_out" for one in own)
    if config.data.images:
        assert config.data.images.store == recipes[-1].image_folder
        assert config.model.vision == recipes[-1].images.encoder.vision


def test_differences_name_the_field_and_leave_out_what_does_not_change_learning():
    config = load(TEXT)
    other = replace(
        config,
        optimizer=OptimizerConfig(peak_lr=1.0, warmup_steps=50, final_lr_fraction=0.05),
        data=replace(config.data, read_threads=7),
        compute=replace(config.compute, remat="full"),
        folder="elsewhere",
    )
    assert [*differences(config, other).values()] == ["optimizer.peak_lr was 0.008, is 1.0"]


def test_fields_change_together_or_not_at_all():
    """Where each of them alone is a contradiction: 4 slices over 2 replicas."""
    config = replace(load(TEXT), mesh=MeshConfig(replica=2, slices=2))
    other = changed(config, {"mesh.replica": 4, "mesh.slices": 4, "steps": 3})
    assert (other.mesh, other.steps) == (MeshConfig(replica=4, slices=4), 3)
    assert replace(other, mesh=config.mesh, steps=config.steps) == config
    assert changed(config, {}) == config
    with pytest.raises(UserError, match="mesh.slices is 4: it must divide"):
        changed(config, {"mesh.slices": 4})


def test_a_field_within_a_new_value_is_changed_after_it():
    loss = Distillation(teacher=Online(weights="nowhere"))
    other = changed(load(TEXT), {"loss.teacher.dtype": "float32", "loss": loss})
    assert other.loss == replace(loss, teacher=Online(weights="nowhere", dtype="float32"))
    with pytest.raises(UserError, match="'loss.teacher.dtyp' is no field of a run: .* 'dtype'"):
        changed(other, {"loss.teacher.dtyp": "float32"})


def test_a_sampler_of_more_tokens_than_there_are_is_refused():
    config = load(TEXT)
    small = replace(config, model=replace(config.model, vocabulary=256))

    def distilled(sampler):
        loss = Distillation(teacher=Online(weights="nowhere"), sampler=sampler)
        return replace(small, loss=loss)

    assert distilled(TopK(candidates=256)).loss.sampler.candidates == 256
    assert distilled(Dense()).loss.sampler == Dense()
    with pytest.raises(UserError, match="candidates is 257, more than the vocabulary's 256"):
        distilled(TopK(candidates=257))


def test_a_source_that_is_not_taught_asks_for_a_store_and_a_loss_of_the_text():
    config = load(str(FILES[0].parent / "distilled_quickstart.py"))
    sources = (replace(config.data.train[0], taught=False), config.data.train[0])
    data = replace(config.data, train=sources)
    assert replace(config, data=data).data.train[0].taught is False
    with pytest.raises(UserError, match="but a teacher in the step speaks of every row: leave"):
        replace(config, data=data, loss=replace(config.loss, teacher=Online(weights="x")))
    for change in ({"temperature": 2.0}, {"student": "candidates"}):
        with pytest.raises(UserError, match="has taught=False and would learn nothing"):
            replace(config, data=data, loss=replace(config.loss, **change))
        replace(config, data=data, loss=replace(config.loss, **change, hard_label_weight=0.1))


def config_classes(kind: object) -> set[type]:
    """Every dataclass that the fields of one lead to."""
    if isinstance(kind, type) and is_dataclass(kind):
        inner = [config_classes(hint) for hint in get_type_hints(kind).values()]
        return {kind}.union(*inner)
    return set().union(*map(config_classes, get_args(kind)))


def test_a_record_knows_every_class_of_a_config(tmp_path):
    names = {kind.__name__ for kind in config_classes(RunConfig)}
    assert {"VisionConfig", "Priority", "TokenSource"} < names
    assert names <= set(configs.__all__)
    seeing = replace(sizes.GEMMA3_4B, vision=sizes.SO400M)
    file = epath.Path(tmp_path / "model.py")
    file.write_text(record(seeing))
    assert read_model_record(file) == seeing
