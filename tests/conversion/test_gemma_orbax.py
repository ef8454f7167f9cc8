"""Folders of the gemma library: which model they hold, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemma_train.config import record
from gemma_train.conversion import gemma_orbax, orbax_arrays
from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import open_weights
from gemma_train.conversion.names import PADDING
from gemma_train.conversion.tensors import Tensor
from gemma_train.errors import UserError
from tests.conversion.gemma_folders import (
    CUT,
    bits,
    filled,
    flat_of,
    joined,
    library_shapes,
    miniature,
    read,
    save,
)
from tests.conversion.test_mapping import unread
from tests.conversion.test_names import PUBLISHED, config_of

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


@pytest.fixture
def looks_like(monkeypatch, tmp_path):
    """Makes a folder whose checkpoint seems to hold these tensors; none is allocated."""

    def make(tensors: dict[str, Tensor]) -> str:
        monkeypatch.setattr(orbax_arrays, "stored", lambda folder: tensors)
        (tmp_path / "_METADATA").touch()
        return str(tmp_path)

    return make


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_known_by_its_shapes(name, looks_like):
    found = open_weights(looks_like(unread(joined(library_shapes(name)))))
    expected = config_of(name)
    if name in ("GEMMA3_4B", "GEMMA3_12B", "GEMMA3_27B"):
        expected = replace(expected, global_rope_factor=8.0, context=131_072)
    assert found.config == expected
    assert PADDING in found.tensors if name < "GEMMA3" else PADDING not in found.tensors


def test_a_record_says_more_than_the_shapes_and_a_config_must_agree(looks_like, tmp_path):
    folder = looks_like(unread(joined(library_shapes("GEMMA3_4B"))))
    unscaled = config_of("GEMMA3_4B")
    with pytest.raises(UserError, match="global_rope_factor was 8.0, is 1.0"):
        open_weights(folder, unscaled)
    short = replace(unscaled, context=4096)
    (tmp_path / gemma_orbax.RECORD).write_text(record(short))
    assert open_weights(folder).config == short
    assert open_weights(folder, unscaled).config == short
    with pytest.raises(UserError, match="window was 1024, is 7"):
        open_weights(folder, replace(unscaled, window=7))


def test_an_unpublished_size_needs_a_config(looks_like):
    tiny = unread(joined(flat_of(CUT, "GEMMA3_4B")))
    folder = looks_like(tiny)
    shape = r"5 layers, heads x head dimension x width \(8, 6, 32\)"
    with pytest.raises(
        UserError, match=f"is no published Gemma \\({shape}\\).*name the config"
    ) as e:
        open_weights(folder)
    assert "\n" not in str(e.value)
    assert open_weights(folder, CUT).config == CUT
    # Without the tensor that it would be known by, and with one of another rank.
    for shape in (None, (4,)):
        name = "transformer/layer_0/attn/attn_vec_einsum/w"
        rest = {key: tensor for key, tensor in tiny.items() if key != name}
        folder = looks_like(rest | (unread({name: shape}) if shape else {}))
        with pytest.raises(UserError, match="is no published Gemma"):
            open_weights(folder)


LAYER_3 = "transformer/layer_3/"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn/q_einsum/w": None}, "'transformer/layer_3/attn/q_einsum/w' is missing"),
        ({"mlp/linear/b": (32,)}, "'transformer/layer_3/mlp/linear/b' is unexpected"),
        ({"attn/kv_einsum/w": (2, 4, 6, 32)}, r"kv_einsum/w' has shape \(2, 4, 6, 32\).*4, 32, 6"),
        (
            {"mlp/gating_einsum/w": (2, 32, 14)},
            r"gating_einsum/w' has shape \(2, 32, 14\).* 14, 32",
        ),
        ({"post_ffw_norm/scale": (1, 32)}, r"post_ffw_norm/scale' has shape \(1, 32\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, message, looks_like):
    shapes = joined(flat_of(CUT, "GEMMA3_4B")) | {LAYER_3 + name: s for name, s in change.items()}
    folder = looks_like(unread({name: shape for name, shape in shapes.items() if shape}))
    with pytest.raises(UserError, match=message) as refusal:
        open_weights(folder, CUT)
    assert str(refusal.value).startswith(folder) and "\n" not in str(refusal.value)


def test_a_table_may_have_the_librarys_rows_but_no_others(looks_like):
    config = miniature("GEMMA2_9B", vocabulary=256_000)
    for rows, holds in ((256_000, True), (256_128, True), (256_064, False), (128, False)):
        folder = looks_like(unread(joined(flat_of(config, "GEMMA2_9B", rows))))
        if holds:
            assert open_weights(folder, config).parameters["embedding/table"].shape == (256_000, 32)
        else:
            with pytest.raises(UserError, match=rf"input_embedding' has shape \({rows}, 32\)"):
                open_weights(folder, config)


@pytest.mark.parametrize("config", [None, CUT], ids=["alone", "with a config"])
@pytest.mark.parametrize(
    "tree",
    [
        {"params": {"dense": {"kernel": np.ones((2, 3))}}, "step": np.int32(3)},
        {"model/pattern/0/attention/query": np.ones((2, 3)), "step": np.int32(3)},
        [np.ones(3)],
    ],
    ids=["another model", "a run's checkpoint", "a list"],
)
def test_a_checkpoint_of_something_else_is_no_gemma(tree, config, tmp_path):
    folder = save(tmp_path / "other", tree)
    with pytest.raises(UserError, match=f"{folder} is an Orbax checkpoint, but not one of a Gemma"):
        open_weights(folder, config)


def test_a_folder_without_orbax_in_it_is_no_model(tmp_path):
    (tmp_path / "weights.msgpack").touch()
    with pytest.raises(UserError, match="holds no model: neither config.json"):
        open_weights(str(tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A FLAT folder of ours."""
    folder = tmp_path_factory.mktemp("whole") / "flat"
    convert_weights(open_weights(str(FIXTURES / "gemma1_mqa")), str(folder), "gemma")
    return folder


def largest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda file: file.stat().st_size)


FILES = {
    "_METADATA": lambda folder: folder / "_METADATA",
    "manifest": lambda folder: folder / "manifest.ocdbt",
    "index": lambda folder: largest(folder, "d/*"),
    "values": lambda folder: largest(folder, "ocdbt.process_*/d/*"),
}


# Orbax's event loop complains after its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("rest", [None, 100], ids=["removed", "truncated"])
@pytest.mark.parametrize("which", FILES)
def test_a_damaged_folder_is_refused_in_one_line_and_nothing_is_written(
    which, rest, whole, tmp_path
):
    folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
    file = FILES[which](folder)
    content = file.read_bytes()
    file.unlink()
    if rest is not None:
        file.write_bytes(content[:rest])
    with pytest.raises(UserError, match=f"checkpoint {folder} cannot be read: ") as refusal:
        convert_weights(open_weights(str(folder)), str(tmp_path / "new"), "hf")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["damaged"]


def test_gate_and_up_are_known_by_their_shape_whichever_way_they_lie(tmp_path):
    config = miniature("GEMMA2_2B", layers=1)
    tree = filled(flat_of(config, "GEMMA2_9B"))
    turned = {
        name: {"w": leaves["w"].swapaxes(1, 2)} if "gating" in name else leaves
        for name, leaves in tree.items()
    }
    tall, wide = (save(tmp_path / name, t) for name, t in (("tall", tree), ("wide", turned)))
    assert bits(read(open_weights(wide, config))) == bits(read(open_weights(tall, config)))
