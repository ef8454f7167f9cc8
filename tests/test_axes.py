"""Every einsum of the package agrees with the names of its operands and of its result."""

import ast
from pathlib import Path

import pytest
from jax.sharding import PartitionSpec

from gemma_train.axes import ACTIVATIONS, LETTERS, MESH_AXES, SPLIT_AXES, activation

PACKAGE = Path(__file__).parents[1] / "gemma_train"
# Calls that give back an array with the axes of their first argument.
SAME_AXES = {"checkpoint_name", "astype", "asarray"}


def suffix(node: ast.AST | None) -> str | None:
    """The letters in a name's suffix; None for what has none, or is no name."""
    match node:
        case ast.Call(func=ast.Attribute(value=array, attr=name)) if name in SAME_AXES - {
            "asarray"
        }:
            return suffix(array)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[array, *_]):
            return suffix(array) if name in SAME_AXES else None
        case ast.Name(id=name) | ast.Attribute(attr=name):
            last = name.rsplit("_", 1)[-1] if "_" in name else ""
            return last if last and set(last) <= set(LETTERS) else None
    return None


def is_einsum(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(), *_]):
            return name in ("einsum", "contract", "contract_each")
    return False


def results(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """The name to which an einsum's value goes, also by way of elementwise products."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            value = node.value
            while isinstance(value, ast.BinOp):
                value = value.right if is_einsum(value.right) else value.left
            if is_einsum(value):
                found[value] = target
    return found


def mistakes(source: str) -> tuple[list[str], int]:
    """What is wrong with the einsums of a source, and how many names were compared."""
    tree, wrong, compared = ast.parse(source), [], 0
    targets = results(tree)
    for node in filter(is_einsum, ast.walk(tree)):
        letters = node.args[0].value
        inputs, output = letters.replace(" ", "").split("->")
        terms = [*inputs.split(","), output]
        unknown = set("".join(terms)) - set(LETTERS)
        if unknown:
            wrong.append(f"{node.lineno}: {letters!r} has {sorted(unknown)}, not in axes.LETTERS")
        if len(terms) != len(node.args):
            wrong.append(f"{node.lineno}: {letters!r} names {len(terms) - 1} operands")
        names = [*node.args[1:], targets.get(node)]
        for term, name in zip(terms, names, strict=False):
            axes = suffix(name)
            compared += axes is not None
            if axes not in (None, term):
                wrong.append(f"{node.lineno}: {ast.unparse(name)} stands for {term!r}")
    return wrong, compared


def test_every_einsum_agrees_with_its_names():
    wrong, compared = [], 0
    for file in sorted(PACKAGE.rglob("*.py")):
        found, names = mistakes(file.read_text())
        wrong += [f"{file.relative_to(PACKAGE)}:{line}" for line in found]
        compared += names
    assert not wrong
    # (Queries, keys and values are one call, and so are gate and up.)
    assert compared >= 22, "the checker finds the package's einsums no more"


@pytest.mark.parametrize(
    ("source", "mistake"),
    [
        ('y_btf = jnp.einsum("btd,df->btf", x_btf, gate_df)', "1: x_btf stands for 'btd'"),
        (
            'y_btf = jnp.einsum("btd,df->btf", x_btd, self.gate_fd)',
            "1: self.gate_fd stands for 'df'",
        ),
        ('y_btd = contract("btd,df->btf", x_btd, gate_df)', "1: y_btd stands for 'btf'"),
        ('y_cd = 2 * (einsum("cv,vd->cv", p_cv, w_vd))', "1: y_cd stands for 'cv'"),
        ('y_dv += jnp.einsum("cd,cv->vd", x_cd, p_cv) * a_c', "1: y_dv stands for 'vd'"),
        ('einsum("btd,df->btf", checkpoint_name(x_bt, "x"), w_df)', "stands for 'btd'"),
        ('einsum("btd,df->btf", x_bt.astype(dtype), w_df)', "stands for 'btd'"),
        ('einsum("btz,zf->btf", x_btz, w_zf)', "1: 'btz,zf->btf' has ['z'], not in axes.LETTERS"),
        ('einsum("btd,df->btf", x_btd)', "1: 'btd,df->btf' names 2 operands"),
    ],
)
def test_the_checker_finds_a_mistake(source, mistake):
    wrong, _ = mistakes(source)
    assert len(wrong) == 1
    assert mistake in wrong[0]


def test_the_checker_leaves_right_and_nameless_operands_alone():
    source = 'y_btf = einsum("btd,df->btf", x_btd, gather(w[...], dtype)) + query_norm'
    assert mistakes(source) == ([], 2)


def test_activations_are_split_by_the_one_rule():
    rows = ("replica", "data_major", "data_minor")
    assert activation("btd") == PartitionSpec(rows, ("seq",), None)
    assert activation("bskh") == PartitionSpec(rows, None, None, None)
    assert set(ACTIVATIONS) <= set(LETTERS)
    assert set(SPLIT_AXES) == set(MESH_AXES) - {"replica"}
    assert {axis for axes in ACTIVATIONS.values() for axis in axes} == set(MESH_AXES)
