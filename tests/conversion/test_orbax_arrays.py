"""Arrays in Orbax checkpoints: written a few at a time, found by path, read when wanted."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from gemma_train.conversion import orbax_arrays
from gemma_train.conversion.tensors import BFLOAT16, Tensor
from gemma_train.errors import UserError

# Of a damaged checkpoint orbax's event loop complains after its end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ARRAYS = {
    "a/layer_0/w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/layer_0/scale": np.arange(3, dtype=BFLOAT16),
    "a/layer_1/w": np.arange(4, dtype=np.float16) / 3,
    "b/w": np.arange(5, dtype=np.int32),
    "c": np.full((), 7.5, np.float32),
}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


def save(folder: Path, arrays: dict[str, np.ndarray] = ARRAYS, **options) -> epath.Path:
    orbax_arrays.save(epath.Path(folder), tensors(arrays), lambda count: None, **options)
    return epath.Path(folder)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert np.asarray(found[name]).tobytes() == array.tobytes(), name


def all_of(folder: epath.Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in orbax_arrays.stored(folder).items()}


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_what_is_saved_is_found_by_its_path_however_deep_it_lies(levels, tmp_path):
    assert_same(all_of(save(tmp_path / "made", levels=levels)), ARRAYS)


def test_names_are_split_at_their_last_slashes(tmp_path):
    found = ocp.PyTreeCheckpointer().restore(save(tmp_path / "made", levels=2) / "state")
    expected = {"a/layer_0": {"w", "scale"}, "a/layer_1": {"w"}, "b": {"w"}}
    assert {name: set(found[name]) for name in expected} == expected
    assert found.keys() == expected.keys() | {"c"}


def test_arrays_are_written_a_few_at_a_time_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_arrays, "_PARCEL_BYTES", 40)
    held, counts = [], []

    def reader(name: str):
        def read() -> np.ndarray:
            held.append(name)
            return ARRAYS[name]

        return read

    def advance(count: int) -> None:
        counts.append((count, len(held)))

    lazy = {name: Tensor(a.shape, a.dtype, reader(name)) for name, a in ARRAYS.items()}
    orbax_arrays.save(epath.Path(tmp_path / "made"), lazy, advance, metadata={"next_row": 3})
    # 24 + 6 + 8 bytes, then 20 + 4: what comes next is read when the parcel before is written.
    assert counts == [(38, 3), (24, 5)]
    assert_same(all_of(epath.Path(tmp_path / "made")), ARRAYS)
    opened = ocp.v1.metadata(tmp_path / "made")
    assert opened.custom_metadata == {"next_row": 3}


def test_nothing_is_read_before_it_is_wanted_and_then_it_alone(tmp_path):
    large = np.random.default_rng(0).random(4000)
    folder = save(tmp_path / "made", {"large": large, "small": np.arange(2)})
    for file in Path(folder).glob("state/ocdbt.process_*/d/*"):
        if file.stat().st_size > large.nbytes // 2:  # small arrays stand in the index
            file.unlink()
    found = orbax_arrays.stored(folder)
    assert (found["large"].shape, found["large"].dtype) == (large.shape, large.dtype)
    assert found["small"].read().tolist() == [0, 1]
    with pytest.raises(UserError, match=f"checkpoint {folder} cannot be read: "):
        found["large"].read()


def test_a_part_is_loaded_as_it_is_wanted(tmp_path):
    folder = save(tmp_path / "made")
    place = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P("x"))
    wanted = jax.ShapeDtypeStruct((2, 3), BFLOAT16, sharding=place)
    found = orbax_arrays.load(folder, {"a/layer_0/w": wanted})
    assert found.keys() == {"a/layer_0/w"}
    array = found["a/layer_0/w"]
    assert (array.dtype, array.sharding) == (BFLOAT16, place)
    np.testing.assert_array_equal(array, ARRAYS["a/layer_0/w"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"b": {"w": 5, "x": 3}}, "'b/x' is missing"),
        ({"b": {"w": 4}}, r"Requested shape: \(4,\) is not .* shape: \(5,\)"),
        ({"b": 5}, ""),
    ],
    ids=["an array that is not there", "another shape", "a folder for an array"],
)
def test_what_does_not_fit_is_refused(wanted, message, tmp_path):
    folder = save(tmp_path / "made", levels=2)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda n: jax.ShapeDtypeStruct((n,), np.int32, sharding=place), wanted)
    with pytest.raises(UserError, match=f"checkpoint {folder} cannot be read: {message}") as e:
        orbax_arrays.load(folder, wanted)
    assert "\n" not in str(e.value)


ONE = {"a": {"w": ARRAYS["a/layer_0/w"]}, "b/c": {"scale": ARRAYS["a/layer_0/scale"]}}


@pytest.mark.parametrize("use_ocdbt", [True, False], ids=["one database", "a folder each"])
@pytest.mark.parametrize("described", [True, False], ids=["described", "as released in 2024"])
def test_checkpoints_of_older_orbax_are_read(use_ocdbt, described, tmp_path):
    folder = tmp_path / "old"
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
    ocp.Checkpointer(handler).save(folder, ONE)
    if not described:
        (folder / "_CHECKPOINT_METADATA").unlink()
        (folder / "commit_success.txt").unlink(missing_ok=True)
    expected = {"a/w": ARRAYS["a/layer_0/w"], "b/c/scale": ARRAYS["a/layer_0/scale"]}
    assert_same(all_of(epath.Path(folder)), expected)


def test_what_is_no_array_is_passed_over(tmp_path):
    folder = tmp_path / "mixed"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"a": np.ones(3), "nothing": None, "empty": {}, "list": [1]})
    assert set(orbax_arrays.stored(epath.Path(folder))) == {"a"}


@pytest.mark.parametrize("file", ["state/_METADATA", "state/manifest.ocdbt", "state/d"])
@pytest.mark.parametrize("rest", [None, 0, 0.5], ids=["removed", "emptied", "truncated"])
def test_a_damaged_description_is_no_empty_checkpoint(file, rest, tmp_path):
    folder = save(tmp_path / "made")
    damaged = Path(folder / file)
    if damaged.is_dir():
        damaged = max(damaged.iterdir(), key=lambda file: file.stat().st_size)
    content = damaged.read_bytes()
    damaged.unlink()
    if rest is not None:
        damaged.write_bytes(content[: int(len(content) * rest)])
    with pytest.raises(UserError, match=f"^checkpoint {folder} cannot be read: ") as refusal:
        orbax_arrays.stored(folder)
    assert "\n" not in str(refusal.value) and "tensorstore_spec" not in str(refusal.value)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^checkpoint {folder} cannot be read: "):
            orbax_arrays.stored(epath.Path(folder))


def test_a_save_that_was_cut_off_is_no_checkpoint(tmp_path):
    folder = epath.Path(tmp_path / "made")

    def fail(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        orbax_arrays.save(folder, tensors(ARRAYS), fail)
    assert not folder.exists()
    with pytest.raises(UserError, match="cannot be read"):
        orbax_arrays.stored(folder)
