"""The floors of the house: what may import what, checked by AST over every module."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gemma_train"

# From the ground up. A module imports from its own room and from lower floors; rooms that stand
# side by side do not see each other. An import that this forbids needs a visible change here.
FLOORS = (
    ("errors", "axes", "run_files", "silence", "signals"),
    ("storage", "mesh", "zero3", "leaves", "checked"),
    ("contents", "agreement"),
    ("metrics", "tokenizer", "definition", "samplers", "sidecar", "vision"),
    ("kernels", "data", "optimizer", "checkpoints", "guard"),
    ("model", "placement"),
    ("losses", "sampling"),
    ("evaluation",),
    ("config", "drift"),
    ("conversion",),
    ("teachers", "encoders"),
    ("training", "stages", "sweeps"),
    ("planning",),
    ("commands",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
README = (PACKAGE.parent / "README.md").read_text()
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The room in which a module stands: its folder in the package, or itself."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str, file: Path) -> list[tuple[int, str]]:
    """(line, room) of every import from the package, wherever in the source it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = ["gemma_train", *file.relative_to(PACKAGE).with_suffix("").parts]
                module = ".".join([*here[: -node.level], *([module] if module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "gemma_train":
                found.append((node.lineno, parts[1] if len(parts) > 1 else "__init__"))
    return found


def forbidden(source: str, file: Path) -> list[str]:
    """The imports of a module's source that go up, sideways, or to a room without a floor."""
    room = room_of(file)
    return [
        f"{file.relative_to(PACKAGE)}:{line} imports {other}"
        for line, other in imported_rooms(source, file)
        if other != room and FLOOR.get(other, len(FLOORS)) >= FLOOR[room]
    ]


def test_every_room_has_exactly_one_floor():
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))
    assert {room_of(file) for file in MODULES} - {"__init__"} == set(rooms)


def test_the_readme_shows_these_floors_and_says_what_each_room_is_for():
    shown = re.search(r"floors below its own:\n\n((?:    .+\n)+)", README)
    assert shown is not None
    floors = [tuple(line.strip().split(" | ")) for line in shown[1].splitlines()]
    assert floors[::-1] == [floor for floor in FLOORS if floor != ("__main__",)]
    house = README.partition("    gemma_train/\n")[2].partition("    configs/")[0]
    rooms = re.findall(r"\b(\w+)(?:/|\.py)(?= )", house)
    assert sorted(rooms) == sorted(room for room in FLOOR if room != "__main__")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_from_lower_floors_only(file):
    if file == PACKAGE / "__init__.py":
        assert not re.findall(r"^\s*(?:from|import)\b", file.read_text(), re.MULTILINE)
    else:
        assert forbidden(file.read_text(), file) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors.py", "import gemma_train.storage"),
        ("mesh.py", "from gemma_train.zero3 import split"),
        ("mesh.py", "from gemma_train import zero3"),
        ("mesh.py", "from . import zero3"),
        ("model/gemma.py", "from ..config import RunConfig"),
        ("model/gemma.py", "def late():\n    from gemma_train.training.step import make_step"),
        ("model/gemma.py", "if TYPE_CHECKING:\n    from gemma_train.losses import next_token"),
        ("data/rows.py", "from gemma_train.kernels.softmax import masked_softmax"),
        ("losses/next_token.py", "from gemma_train.sampling import sample"),
        ("config.py", "import gemma_train.commands.train as train"),
        ("config.py", "from gemma_train.unheard_of import room"),
    ],
)
def test_an_upward_or_sideways_import_is_found(module, source):
    assert len(forbidden(source, PACKAGE / module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model/gemma.py", "from gemma_train.model.layers import rms_norm"),
        ("model/gemma.py", "from .layers import rms_norm"),
        ("model/gemma.py", "from gemma_train import zero3"),
        ("commands/train.py", "import gemma_train.errors, jax"),
    ],
)
def test_a_downward_import_is_let_through(module, source):
    assert imported_rooms(source, PACKAGE / module)
    assert forbidden(source, PACKAGE / module) == []


def test_no_two_packages_or_modules_import_each_other():
    """A folder within a room is one thing: nothing that it imports may lead back to it."""
    graph = {}
    for file in MODULES:
        for name in imported_modules(file.read_text()):
            here, there = unit_of(file), unit_of(name)
            if here != there:
                graph.setdefault(here, set()).add(there)
    assert "data/teacher_store" in graph["data/streams.py"]
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises where there is a cycle


def imported_modules(source: str) -> list[Path]:
    """The modules and packages that a module's source imports from the package."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gemma_train"):
            base = PACKAGE.parent / (node.module or "").replace(".", "/")
            for name in (alias.name for alias in node.names):
                inner = base / name
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                found.append(inner if is_module else base)
    return [path if path.is_dir() else path.with_suffix(".py") for path in found]


def unit_of(path: Path) -> str:
    """A module, or the folder within a room that it is in."""
    parts = path.relative_to(PACKAGE).parts
    nested = len(parts) > 2 or (len(parts) == 2 and not path.suffix)
    return "/".join(parts[:2]) if nested else "/".join(parts)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_is_short_and_has_a_name_of_its_own(file):
    assert len(file.read_text().splitlines()) <= 350
    assert not {"utils", "util", "common", "helpers", "misc"} & {*file.parts, file.stem}


def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys, gemma_train\n"
        "heavy = {'jax', 'flax', 'numpy', 'optax', 'grain', 'orbax', 'tyro'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
        "rooms = [name for name in sys.modules if name.startswith('gemma_train.')]\n"
        "assert not rooms, rooms\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line_library_is_imported_in_one_place():
    importing = re.compile(r"^\s*(?:import|from) tyro\b", re.MULTILINE)
    files = [file for file in MODULES if importing.search(file.read_text())]
    assert [str(file.relative_to(PACKAGE)) for file in files] == ["commands/command_line.py"]
