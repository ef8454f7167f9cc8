"""Where every weight of every Gemma is split, and what its gather and the gather's transpose do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from gemma_train.axes import SPLIT_AXES, activation
from gemma_train.kernels.contraction import scaled
from gemma_train.leaves import by_path
from gemma_train.mesh import MeshConfig
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig, sizes
from gemma_train.zero3 import gather, ruled_sharding, share, split, whole
from tests.tolerances import assert_close

SIZES = {name: value for name, value in vars(sizes).items() if isinstance(value, GemmaConfig)}
# Gemma 3 report, table 2: the shards of each size's pretraining.
TABLE_2 = {
    "GEMMA3_1B": MeshConfig(data=16, seq=16),
    "GEMMA3_4B": MeshConfig(data=16, seq=16),
    "GEMMA3_12B": MeshConfig(data=16, seq=16),
    "GEMMA3_27B": MeshConfig(data=24, seq=8),
}
EVERYWHERE = [(256, 1), (128, 1), (8, 1), (2, 2), (4, 2), (2, 4)]
MESHES = list(TABLE_2.items())
MESHES += [(name, MeshConfig(data=d, seq=s)) for name in SIZES for d, s in EVERYWHERE]


@pytest.fixture(scope="module")
def shapes_of():
    """The shape of every parameter of a size, by path; nothing is allocated."""
    made = {}

    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        if name not in made:
            config = SIZES[name]
            model = nnx.eval_shape(lambda: Gemma(config, ComputeConfig(), nnx.Rngs(0)))
            made[name] = {path: leaf.shape for path, leaf in by_path(model).items()}
        return made[name]

    return shapes


def entries_of(spec: PartitionSpec) -> list[tuple[str, ...]]:
    return [e if isinstance(e, tuple) else () if e is None else (e,) for e in spec]


@pytest.mark.parametrize(("name", "mesh"), MESHES, ids=lambda x: x if isinstance(x, str) else "")
def test_every_matrix_is_split_over_every_axis(name, mesh, shapes_of, letters_of):
    sizes = mesh.axis_sizes
    axes = [axis for axis in SPLIT_AXES if sizes[axis] > 1]
    largest = max(sizes[axis] for axis in axes)
    for path, shape in shapes_of(name).items():
        letters = letters_of(path)
        dealt = dict(zip(letters, entries_of(split(letters, shape, sizes)), strict=True))
        used = [axis for axes in dealt.values() for axis in axes]
        assert len(set(used)) == len(used), path
        for letter, length in zip(letters, shape, strict=True):
            assert length % np.prod([sizes[axis] for axis in dealt[letter]]) == 0, path
        assert not dealt.get("l"), path
        if "d" in letters:
            assert sizes[dealt["d"][0]] == largest, path
        if len(letters.replace("l", "")) >= 2:
            assert sorted(used) == sorted(axes), path


def test_there_are_ten_sizes_and_all_are_looked_at():
    assert len(SIZES) == 10
    assert len(MESHES) == 4 + 10 * 6


def test_axes_go_to_d_while_they_divide_it_then_to_the_longest_other_dimension():
    sizes = {"data_major": 4, "data_minor": 2, "seq": 1}
    assert split("dnh", (8, 2, 64), sizes) == PartitionSpec(
        ("data_major", "data_minor"), None, None
    )
    assert split("dnh", (4, 2, 64), sizes) == PartitionSpec("data_major", None, "data_minor")
    assert split("fd", (10, 4), sizes) == PartitionSpec("data_minor", "data_major")
    assert split("dnh", (7, 3, 5), sizes) == PartitionSpec(None, None, None)
    assert split("ld", (4, 6), sizes) == PartitionSpec(None, "data_minor")


def test_a_table_s_rows_take_the_second_axis():
    sizes = {"data_major": 4, "data_minor": 2, "seq": 1}
    assert split("vd", (64, 8), sizes) == PartitionSpec("data_minor", "data_major")
    assert split("vd", (63, 8), sizes) == PartitionSpec(None, ("data_major", "data_minor"))


def test_without_a_mesh_no_sharding_is_ruled(mesh_of):
    assert ruled_sharding("vd", (8, 8)) is None
    with mesh_of(data=8):
        assert ruled_sharding("vd", (8, 8)) == PartitionSpec("data_minor", "data_major")


LAYERS, ROWS, LENGTH, WIDTH = 3, 8, 4, 8


def scanned(dtype, use=lambda w: w):
    """loss(weights [l, d, d], scales [l, d], x): layers of tanh(x @ weight) * (1 + scale)."""

    def loss(weight_ldf, scale_ld, x_btd):
        def body(x_btd, layer):
            weight_df, scale_d = layer
            weight_df = gather(weight_df, dtype) if use is share else weight_df.astype(dtype)
            x_btd = jnp.tanh(jnp.einsum("btd,df->btf", x_btd, weight_df))
            grown_d = 1 + scale_d
            x_btd = scaled(x_btd, grown_d) if use is share else x_btd * grown_d
            return x_btd.astype(dtype), None

        scales = whole(scale_ld) if use is share else scale_ld
        layers = (use(weight_ldf), scales)
        x_btd, _ = jax.lax.scan(body, x_btd.astype(dtype), layers)
        return jnp.sum(jnp.square(x_btd.astype(jnp.float32)))

    return loss


def arrays() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = (LAYERS, WIDTH, WIDTH), (LAYERS, WIDTH), (ROWS, LENGTH, WIDTH)
    return [np.float32(random.normal(size=shape) * 0.5) for shape in shapes]


def placed() -> list[jax.Array]:
    mesh = jax.sharding.get_mesh()
    weight, scale, x = arrays()
    specs = (
        split("ldf", weight.shape, mesh.shape),
        split("ld", scale.shape, mesh.shape),
        activation("btd"),
    )
    pairs = zip((weight, scale, x), specs, strict=True)
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in pairs]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1), (1, 2, 4), (2, 4, 1)])
def test_gathered_weights_give_the_values_and_gradients_of_whole_ones(mesh, dtype, mesh_of):
    with mesh_of(*mesh):
        on_mesh = placed()
        value, gradients = jax.jit(jax.value_and_grad(scanned(dtype, share), (0, 1)))(*on_mesh)
        for gradient, weight in zip(gradients, on_mesh, strict=False):
            assert gradient.dtype == jnp.float32
            assert gradient.sharding == weight.sharding
    expected, wanted = jax.jit(jax.value_and_grad(scanned(dtype), (0, 1)))(*arrays())
    tolerance = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    assert_close(value, expected, tolerance)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert_close(gradient, want, tolerance)


def test_a_kept_dimension_stays_split(mesh_of):
    with mesh_of(2, 2, 2):
        mesh = jax.sharding.get_mesh()
        table = np.arange(64.0).reshape(8, 8)
        spec = split("vd", table.shape, mesh.shape)
        weight = jax.device_put(table, NamedSharding(mesh, spec))
        rows = jax.jit(lambda w: gather(share(w), jnp.float32, keep=1))(weight)
        entire = jax.jit(lambda w: gather(share(w), jnp.float32))(weight)
    assert weight.sharding.spec == PartitionSpec("seq", "data_major")
    assert rows.sharding.spec.partitions == (None, "data_major")
    assert entire.sharding.is_fully_replicated
    np.testing.assert_array_equal(rows, table)
    np.testing.assert_array_equal(entire, table)


def reshards(jaxpr, in_scan: bool = False):
    """(inside a scan, dtype) of every reshard in a program, by its own words."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "reshard":
            yield in_scan, equation.invars[0].aval
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from reshards(inner, in_scan or name == "scan")


def test_weights_and_gradients_travel_in_the_compute_dtype_inside_the_scan(mesh_of):
    with mesh_of(2, 2, 2):
        program = jax.make_jaxpr(jax.grad(scanned("bfloat16", share)))(*placed())
    found = list(reshards(program.jaxpr))
    inside = [str(array.dtype) for in_scan, array in found if in_scan]
    assert inside == ["bfloat16"] * 4  # two hops to gather, two to scatter
    # What is summed over replica, once and outside, keeps its 32 bits.
    outside = [str(array.dtype) for in_scan, array in found if not in_scan and array.ndim == 3]
    assert set(outside) == {"float32"}


def groups_of(line: str) -> frozenset[frozenset[int]]:
    """The groups of device numbers of a collective in a compiled program's text."""
    text = line.split("replica_groups=")[1]
    if listed := re.match(r"\{(\{[\d,{}]+\})\}", text):
        groups = [map(int, g.split(",")) for g in re.findall(r"\{([\d,]+)\}", listed[1])]
    elif iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = ([int(n) for n in (g or "").split(",") if n] for g in iota.groups())
        numbers = np.arange(np.prod(dims)).reshape(dims)
        groups = numbers.transpose(order or range(len(dims))).reshape(shape).tolist()
    else:
        mesh = re.match(r"mesh\[([^\]]+)\] ?\{([^}]*)\}", text)
        assert mesh, text
        names, lengths = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]), strict=True)
        numbers = np.arange(np.prod([int(n) for n in lengths])).reshape([int(n) for n in lengths])
        axes = [names.index(a) for a in re.findall(r"'(\w+)'", mesh[2])]
        kept = np.moveaxis(numbers, axes, range(-len(axes), 0))
        groups = kept.reshape(-1, np.prod([numbers.shape[a] for a in axes])).tolist()
    return frozenset(frozenset(group) for group in groups)


def test_the_sum_over_replicas_runs_once_outside_the_scan(mesh_of):
    with mesh_of(2, 2, 2):
        ids = np.vectorize(lambda d: d.id)(jax.sharding.get_mesh().devices)
        step = jax.jit(jax.grad(scanned("float32", share)))
        program = step.lower(*placed()).compile().as_text()
    axes = {
        frozenset(
            frozenset(g) for g in np.moveaxis(ids, i, -1).reshape(-1, ids.shape[i]).tolist()
        ): n
        for i, n in enumerate(("replica", "data_major", "data_minor", "seq"))
    }
    bodies = set(re.findall(r"body=(%[\w.\-]+)", program))
    assert len(bodies) == 2, "one loop forward, one backward"
    inside, outside = [], []
    for part in re.split(r"\n(?=%|ENTRY)", program):
        place = inside if part.split(" ", 1)[0] in bodies else outside
        for line in part.splitlines():
            if found := re.search(r" (all-gather|all-reduce|reduce-scatter)\(", line):
                kind = "gather" if found[1] == "all-gather" else "reduce"
                place.append((kind, axes.get(groups_of(line), "several axes at once")))
    # One axis a hop. (The CPU writes a reduce-scatter as an all-reduce and a slice.)
    reduced = sorted(axis for kind, axis in inside if kind == "reduce")
    gathered = [axis for kind, axis in inside if kind == "gather"]
    assert reduced == ["data_major", "seq"]
    assert set(gathered) == {"data_major", "seq"}
    assert [axis for kind, axis in outside if kind == "reduce"] == ["replica"]


def test_the_reader_of_device_groups_reads_every_spelling():
    pairs = frozenset(map(frozenset, ([0, 2], [1, 3], [4, 6], [5, 7])))
    for text in (
        "replica_groups={{0,2},{1,3},{4,6},{5,7}}, x",
        "replica_groups=[4,2]<=[2,2,2]T(0,2,1), x",
        "replica_groups=mesh['replica'=2,'data_major'=2,'data_minor'=1,'seq'=2] {'data_major'}, x",
    ):
        assert groups_of(text) == pairs
    assert groups_of("replica_groups=[2,2]<=[4]") == frozenset(map(frozenset, ([0, 1], [2, 3])))
