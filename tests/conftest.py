"""Eight simulated CPU devices, set before JAX wakes; JAX is imported only where it is used."""

import functools
import os
import re
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs here are tiny and many: LLVM's optimiser costs more than it saves (init 1.5 s, not 8).
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
# What one test has compiled, no other one does, nor a process that a test starts, nor a worker: but
# programs for TPUs, which cannot be loaded here. What a killed process half wrote is warned of.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="gemma_train-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session")
def mesh_of():
    """`with mesh_of(replica, data, seq):` puts a mesh of the first devices in force."""
    import jax

    from gemma_train.mesh import MeshConfig, make_mesh

    def mesh(replica: int = 1, data: int = 1, seq: int = 1):
        config = MeshConfig(replica=replica, data=data, seq=seq)
        return jax.set_mesh(make_mesh(config, jax.devices()[: config.devices]))

    return mesh


@pytest.fixture(scope="session")
def run_on_chips():
    """Makes of a model and a mesh of TPUs a function: the run of it, changed by dotted names."""
    from gemma_train.config import DataConfig, RunConfig, TokenSource, changed

    def make(model, mesh, *, length: int, rows: int, **fields):
        run = RunConfig(
            folder="runs/pod",
            model=model,
            data=DataConfig(
                tokenizer="none",
                train=(TokenSource(path="none"),),
                sequence_length=length,
                batch_rows=rows,
            ),
            mesh=mesh,
            **fields,
        )

        def with_changes(**changes) -> RunConfig:
            """A dot is written as two underscores."""
            return changed(run, {n.replace("__", "."): v for n, v in changes.items()})

        return with_changes

    return make


@pytest.fixture(scope="session")
def mesh_of_chips():
    """Makes the mesh of a MeshConfig over the TPU chips that it names, which are not there."""
    from gemma_train.mesh import make_mesh
    from gemma_train.planning.topology import NoCompiler, Slices, devices

    def make(config):
        try:
            return make_mesh(config, devices(Slices.named(config.topology, config.slices)))
        except NoCompiler as error:
            pytest.skip(f"no TPU compiler here ({error}): pip install libtpu, Linux on x86-64")

    return make


@pytest.fixture(scope="session")
def compiled_step(mesh_of_chips):
    """Compiles the step of a config for the TPUs that it names, each config once a session."""
    from gemma_train.planning.compiled import compile_step

    return functools.cache(lambda config: compile_step(config, mesh_of_chips(config.mesh)))


@pytest.fixture(scope="session")
def packed():
    """Makes (positions, segments) of rows that hold several documents, as packing makes them."""
    import numpy as np

    def make(rows: int, length: int, seed: int = 0, mean: float = 5.0, padding: int = 0):
        """The last `padding` tokens of every second row are padding: segment 0, position 0."""
        random = np.random.default_rng(seed)
        starts_bt = random.random((rows, length)) < 1 / mean
        starts_bt[:, 0] = True
        segments_bt = np.cumsum(starts_bt, axis=1).astype(np.int32)
        index_t = np.arange(length)
        last_start_bt = np.maximum.accumulate(np.where(starts_bt, index_t, 0), axis=1)
        positions_bt = (index_t - last_start_bt).astype(np.int32)
        if padding:
            segments_bt[::2, -padding:] = positions_bt[::2, -padding:] = 0
        return positions_bt, segments_bt

    return make


@pytest.fixture(scope="session")
def largest_arrays():
    """Reads the shapes of all arrays in a compiled program's text."""

    def shapes(program: str) -> set[tuple[int, ...]]:
        found = re.findall(r"\b(?:pred|bf16|f16|f32|f64|[su]\d+)\[([\d,]+)\]", program)
        return {tuple(map(int, text.split(","))) for text in found}

    return shapes


@pytest.fixture(scope="session")
def letters_of():
    """The letters of a parameter, moment or gradient by the path of its leaf; "" for counters.

    Written a second time, apart from the declarations in the model, to hold them to it.
    """
    matrices = {"table": "vd", "gate": "df", "up": "df", "down": "fd"}
    matrices |= {"query": "dnh", "key": "dkh", "value": "dkh", "output": "nhd"}
    norms = {"query_norm": "h", "key_norm": "h"}

    def letters(path: str) -> str:
        *folders, name = path.split("/")
        default = "d" if name.endswith("_norm") else ""
        found = matrices.get(name) or norms.get(name, default)
        return f"l{found}" if found and "pattern" in folders else found

    return letters
