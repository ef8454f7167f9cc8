"""Every option that the step is compiled with is one that the compiler knows, chip by chip."""

import pytest

from gemma_train.mesh import MeshConfig
from gemma_train.training.compiler_options import compiler_options

TOPOLOGIES = {
    "TPU v4": "v4:2x2x1",
    "TPU v5 lite": "v5e:2x2",
    "TPU v5": "v5p:2x2x1",
    "TPU v6 lite": "v6e:2x2",
}


@pytest.fixture
def compile_with(mesh_of_chips):
    """Compiles a trivial function for four chips of a kind, with options."""
    import jax

    def compile_for(kind: str, options: dict[str, str]):
        mesh = mesh_of_chips(MeshConfig(data=4, topology=TOPOLOGIES[kind]))
        assert mesh.devices.flat[0].device_kind == kind
        with jax.set_mesh(mesh):
            doubled = jax.jit(lambda x: 2 * x, compiler_options=options)
            return doubled.lower(jax.ShapeDtypeStruct((8,), "float32")).compile()

    return compile_for


def test_a_tpu_of_any_kind_is_told_and_nothing_else():
    for kind in (*TOPOLOGIES, "TPU v7x", "TPU of a year to come"):
        assert "while-loop-all-reduce-code-motion" in compiler_options(kind).values()
    assert compiler_options("cpu") == compiler_options("NVIDIA H100") == {}


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_the_compiler_takes_the_options_of_its_chip(kind, compile_with):
    assert compile_with(kind, compiler_options(kind))


def test_the_compiler_refuses_an_option_that_it_does_not_know(compile_with):
    import jax

    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        compile_with("TPU v5 lite", {"xla_no_such_option": "true"})
