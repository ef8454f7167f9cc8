"""What the TPU compiler makes of a teacher's candidates: the loss at full size, a small step."""

from dataclasses import replace

import pytest

from gemma_train.config import Distillation
from gemma_train.mesh import MeshConfig
from gemma_train.planning.compiled import Compiled
from gemma_train.planning.gates import gates
from gemma_train.planning.memory import state_bytes, stored_bytes
from gemma_train.planning.program import read, reshapes_of
from gemma_train.planning.slices import Slices

GIB, TOKENS, VOCABULARY, CANDIDATES = 2**30, 65_536, 262_144, 256
CHUNK = Distillation.chunk  # as a run has it unless it is told otherwise
# (chips that share out 65,536 tokens and the vocabulary, width, the most of temporaries in GiB)
GROUPS = {"4B": ("v5e:4x4", 16, 2560, 2.2), "27B": ("v5p:2x2x2", 8, 5376, 3.6)}


@pytest.fixture(scope="module")
def loss_of(mesh_of_chips):
    """Compiles the loss of a group and its gradients, from states in bfloat16."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from gemma_train.axes import activation
    from gemma_train.kernels.vocabulary.loss import LossTerms, Targets, vocabulary_loss
    from gemma_train.silence import silenced_standard_error

    def loss(states_btd, table_vd, targets, weights_bt):
        return vocabulary_loss(states_btd, table_vd, targets, weights_bt, LossTerms(chunk=CHUNK))

    def make(topology: str, chips: int, width: int):
        mesh = mesh_of_chips(MeshConfig(seq=chips, topology=topology))

        def array(letters: str, dtype, spec=None):
            sizes = {"b": 2, "t": TOKENS // 2, "d": width, "v": VOCABULARY, "q": CANDIDATES}
            sharding = NamedSharding(mesh, spec or activation(letters))
            shape = tuple(sizes[letter] for letter in letters)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        targets = Targets(
            hard_bt=array("bt", jnp.int32),
            candidates_btq=array("btq", jnp.int32),
            probabilities_btq=array("btq", jnp.float32),
            hard_weights_bt=array("bt", jnp.float32),
        )
        table_vd = array("vd", jnp.float32, PartitionSpec("seq", None))
        with jax.set_mesh(mesh), silenced_standard_error():
            step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).trace(
                array("btd", jnp.bfloat16), table_vd, targets, array("bt", jnp.float32)
            )
            return step.lower(lowering_platforms=("tpu",)).compile()

    return make


@pytest.mark.parametrize("size", GROUPS)
def test_at_full_size_the_loss_stays_within_its_memory(size, loss_of):
    topology, chips, width, most = GROUPS[size]
    compiled = loss_of(topology, chips, width)
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes / GIB < most
    held = memory.peak_memory_in_bytes - memory.argument_size_in_bytes
    assert (held - memory.output_size_in_bytes) / GIB < most
    # A chip's rows of the vocabulary for a chunk of every chip of the group, and no more tokens.
    arrays = read(compiled.as_text()).held_arrays()
    of_chunk, of_table = CHUNK * VOCABULARY, width * VOCABULARY // chips
    sizes = {array.elements for array in arrays} - {of_table}
    assert max(sizes) == of_chunk


@pytest.fixture(scope="module")
def distilled_run(small_run):
    """The small run on two slices, in two microbatches, with a stored teacher."""
    from gemma_train.config import Distillation, Stored, TopK

    loss = Distillation(
        teacher=Stored(folder="none", weights="none"),
        sampler=TopK(candidates=24),
        hard_label_weight=0.1,
        z_loss=1e-4,
        chunk=256,
    )
    run = small_run(mesh__replica=2, mesh__slices=2, accumulation=2, data__batch_rows=64)
    return replace(run, loss=loss)


def test_every_gate_of_a_distilled_step_holds(distilled_run, compiled_step):
    config = distilled_run
    compiled = compiled_step(config)
    assert isinstance(compiled, Compiled)
    slices = Slices.named(config.mesh.topology, config.mesh.slices)
    found = gates(config, slices, compiled)
    assert [gate.told for gate in found if not gate.holds] == []


def test_a_stores_candidates_are_counted_once(distilled_run, compiled_step):
    """Among the arguments: ids and weights of all of a step's tokens, of a chip."""
    config = distilled_run
    compiled, state = compiled_step(config), state_bytes(config)
    tokens = config.step_tokens // config.mesh.devices
    text = 5 * 4 * tokens  # ids, targets, positions, segments, weights
    found = compiled.argument_bytes - state.parameters - state.moments - text
    assert stored_bytes(config) == 24 * (4 + 4) * tokens
    assert 1 <= found / stored_bytes(config) < 1.25, "or tiles are padded, or something is twice"


def test_neither_logits_nor_targets_are_ever_whole(distilled_run, compiled_step):
    config = distilled_run
    program = read(compiled_step(config).program)
    vocabulary, tokens = config.model.vocabulary, 1024
    for rows in (tokens, 4 * tokens):  # of one chip, and of those that share out the vocabulary
        assert reshapes_of(program, rows, vocabulary) == []
        assert rows == tokens or reshapes_of(program, rows, vocabulary // 4) == []
    assert reshapes_of(program, 256 * 4, vocabulary // 4), "or shapes are not told as they are"


def test_targets_of_more_tokens_than_a_chunk_are_found(distilled_run, compiled_step):
    config = distilled_run
    smaller = replace(config, loss=replace(config.loss, chunk=32))
    slices = Slices.named(config.mesh.topology, config.mesh.slices)
    found = {gate.name: gate for gate in gates(smaller, slices, compiled_step(config))}
    assert not found["logits at one time"].holds
