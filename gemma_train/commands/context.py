"""`gemma-train context RUN [RUN ...]`: what runs make of a longer and longer context."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh

from gemma_train import storage
from gemma_train.config import RunConfig, read_record
from gemma_train.conversion.load import load, open_weights
from gemma_train.conversion.tensors import Weights
from gemma_train.data.long_rows import LongRows, long_rows
from gemma_train.errors import require
from gemma_train.evaluation import context_picture
from gemma_train.evaluation.over_context import Found, OverContext, over_context
from gemma_train.evaluation.scores import make_scorer
from gemma_train.mesh import MeshConfig, is_leader, make_mesh, start_runtime
from gemma_train.metrics.interval import Mean
from gemma_train.metrics.waiting import waiting
from gemma_train.run_files import CONTEXT
from gemma_train.tokenizer.tokenizer import Tokenizer, check_same_ids

LENGTHS = (512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class ContextArguments:
    """Measure the newest checkpoints of runs over growing context, also beyond what they know."""

    runs: tuple[str, ...]  # the run folders
    lengths: tuple[int, ...] = ()  # tokens of context; 512, 1024, 2048 and 4096 if none is given
    rope_factor: tuple[float, ...] = ()  # of global layers' positions; each run's own if none
    rows: int = 32  # of held-out text, of needles and of key-values, at each length
    window: int = 256  # tokens at the end of each row whose loss is compared
    seed: int = 0  # of the needles and key-values
    mesh: MeshConfig = MeshConfig()  # devices to evaluate on; one by default

    def __post_init__(self) -> None:
        require(bool(self.runs), "runs are none: name the folder of at least one")
        twice = [run for run in self.runs if self.runs.count(run) > 1]
        require(not twice, f"run {(twice or [''])[0]!r} is named twice: name each once")
        for factor in self.rope_factor:
            require(factor > 0, f"rope_factor is {factor}: it must be above 0")
        for length in self.asked.lengths:
            require(
                length % self.mesh.seq == 0,
                f"mesh.seq is {self.mesh.seq}: it must divide all lengths, also {length}",
            )

    @property
    def asked(self) -> OverContext:
        """What every model is asked."""
        return OverContext(
            lengths=self.lengths or LENGTHS, window=self.window, rows=self.rows, seed=self.seed
        )


def run(arguments: ContextArguments) -> None:
    """Print tables, write context.json into each run and the picture into the first."""
    asked = arguments.asked
    start_runtime(arguments.mesh)
    opened = [_opened(folder, asked) for folder in arguments.runs]
    mesh = make_mesh(arguments.mesh, jax.devices()[: arguments.mesh.devices])
    lines: dict[str, Found] = {}
    with jax.set_mesh(mesh):
        for one in opened:
            factors = arguments.rope_factor or (one.weights.config.global_rope_factor,)
            found = {factor: _found(one, factor, mesh, asked) for factor in factors}
            for factor, figures in found.items():
                lines[f"{one.folder}, RoPE factor {factor:g}"] = figures
            if is_leader():
                _write(one, found, asked)
    if is_leader():
        first = storage.path(arguments.runs[0])
        for name, content in context_picture.drawn(lines).items():
            storage.write_whole(first / name, content)
            print(f"wrote {first / name}")


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A run before anything is computed: its weights unread, its rows of text cut."""

    folder: str
    config: RunConfig
    weights: Weights
    text: LongRows
    tokenizer: Tokenizer


def _opened(folder: str, asked: OverContext) -> _Opened:
    config = read_record(folder)
    require(
        bool(config.data.held_out),
        f"{folder!r} held nothing out (data.held_out is empty): there is no text to ask it of",
    )
    weights = open_weights(folder)
    check_same_ids(weights.tokenizer, config.data.tokenizer, f"run {folder!r} was made with")
    return _Opened(
        folder=folder,
        config=config,
        weights=weights,
        text=long_rows(config.data, max(asked.lengths), asked.rows),
        tokenizer=Tokenizer.load(config.data.tokenizer),
    )


def _found(one: _Opened, factor: float, mesh: Mesh, asked: OverContext) -> Found:
    """The figures of a run with a factor of global layers' positions, its own or another."""
    model = replace(one.weights.config, global_rope_factor=factor)
    score = make_scorer(
        load(replace(one.weights, config=model), one.config.compute),
        mesh,
        chunk=one.config.loss.chunk,
        longest=max(asked.lengths),
    )
    return over_context(
        score, one.text.ids_bt, one.tokenizer, asked, _telling(f"{one.folder}, factor {factor:g}")
    )


def _telling(name: str) -> Callable[[str], AbstractContextManager]:
    return lambda what: waiting(f"{name}: {what}") if is_leader() else nullcontext()


def _write(one: _Opened, found: dict[float, Found], asked: OverContext) -> None:
    """Tell a run's figures, and write all of them."""
    head = {"step": one.weights.step, **dataclasses.asdict(asked), "text": one.text.told}
    models = [{"rope_factor": f, **dataclasses.asdict(figures)} for f, figures in found.items()]
    target = storage.path(one.folder) / CONTEXT
    storage.write_whole(target, json.dumps({**head, "models": models}, indent=2) + "\n")
    print(f"\n{one.folder} after {one.weights.step:,} steps; {one.text.told}")
    for factor, figures in found.items():
        print(f"\nRoPE factor {factor:g} on global layers, nats a token, 95 % intervals over rows")
        print(*_table(figures), sep="\n")
    print(f"\nwrote {target}")


def _table(figures: Found) -> Iterable[str]:
    shortest = f"against {figures.at_length[0].length:,}"
    head = ("context", "final window", shortest, "needle right", "its loss", "key right", "loss")
    yield "".join(f"{cell:>16}" for cell in head)
    for one in figures.at_length:
        cells = (
            f"{one.length:,}",
            _interval(one.final_window),
            _interval(one.change, "+"),
            f"{one.needle.right.share:.0%}",
            _interval(one.needle.loss),
            f"{one.key_value.right.share:.0%}",
            _interval(one.key_value.loss),
        )
        yield "".join(f"{cell:>16}" for cell in cells)


def _interval(mean: Mean, sign: str = "") -> str:
    assert mean.high is not None
    return f"{mean.mean:{sign}.3f} ± {mean.high - mean.mean:.3f}"
