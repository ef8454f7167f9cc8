"""RunConfig: everything that makes a run, composed of each component's own config; and its record.

A run is a Python file that ends in `config = RunConfig(...)`; `load` executes it, for it is the
user's own program. The record that a run keeps of itself has the same form but may come from
anywhere: `read_record` evaluates literals and config classes only, and executes nothing.
"""

import ast
import difflib
import pprint
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from etils import epath

from gemma_train import storage
from gemma_train.checked import check_fields, check_values
from gemma_train.contents import read_text
from gemma_train.data.config import DataConfig, ImageRows, TokenSource
from gemma_train.definition import load_definition
from gemma_train.errors import UserError, require
from gemma_train.evaluation.held_out import EvaluationConfig
from gemma_train.guard import GuardConfig
from gemma_train.losses.distillation import Distillation, Online, Stored
from gemma_train.losses.next_token import NextToken
from gemma_train.mesh import MeshConfig
from gemma_train.model.config import ComputeConfig, GemmaConfig
from gemma_train.model.sizes import GEMMA3_1B, kept_short
from gemma_train.optimizer import OptimizerConfig
from gemma_train.run_files import RECORD
from gemma_train.samplers import Counts, Dense, Gumbel, Multinomial, Priority, TopK, size
from gemma_train.vision import VisionConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run."""

    folder: str  # where everything the run makes goes: local or gs://
    model: GemmaConfig  # what is trained
    data: DataConfig  # what it is trained on
    steps: int  # optimizer steps of the whole run
    seed: int = 0  # of the initial parameters
    initial_weights: str | None = None  # a Hugging Face, gemma or run folder to begin from
    initial_moments: Literal["fresh", "kept"] = "fresh"  # Adam's; kept: of the initial_weights' run
    accumulation: int = 1  # microbatches a step; each holds batch_rows / accumulation rows
    loss: NextToken | Distillation = NextToken()  # what is minimised
    optimizer: OptimizerConfig = OptimizerConfig()  # how
    guard: GuardConfig = GuardConfig()  # which steps are skipped
    compute: ComputeConfig = ComputeConfig()  # in which arithmetic, and what is recomputed
    mesh: MeshConfig = MeshConfig()  # on which devices
    evaluation: EvaluationConfig = EvaluationConfig()  # how often, on how much held-out text
    checkpoint_every_steps: int = 500  # steps between checkpoints
    checkpoints_kept: int = 3  # newest checkpoints that stay
    watchdog_minutes: float = 60.0  # without a step, then stacks are written and it ends; 0: off
    replay_every_steps: int = 0  # steps between such as are computed twice and compared; 0: none
    accepted_changes: tuple[str, ...] = ()  # fields that may differ from the run's record
    tensorboard: bool = True  # write TensorBoard files beside metrics.jsonl

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.folder), "folder is empty: name one, such as runs/mine")
        for name in ("steps", "accumulation", "checkpoint_every_steps", "checkpoints_kept"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}: it must be at least 1")
        for name in ("watchdog_minutes", "replay_every_steps"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}: it must be 0 (off) or more")
        for name in self.accepted_changes:
            require(
                _is_field(self, name),
                f"accepted_changes names {name!r}, which is no field of a run: write it as in "
                "'optimizer.peak_lr'",
            )
        require(
            self.model.vision is not None or self.data.images is None,
            "data.images is set, but model.vision is None: choose a model that sees images",
        )
        captions = self.evaluation.captions
        require(
            not captions or (self.data.images is not None and self.mesh.seq == 1),
            f"evaluation.captions is {captions}: captions are said of data.images, on a mesh whose "
            f"seq is 1 (it is {self.mesh.seq}): set it to 0",
        )
        length, context = self.data.sequence_length, self.model.context
        window = self.model.window or 0
        require(
            window <= context,
            f"model.window is {window}, longer than model.context, {context}: local layers would "
            f"see all there is, choose at most {context}",
        )
        require(
            length <= context,
            f"data.sequence_length is {length}, longer than model.context, {context}: "
            f"choose at most {context}",
        )
        require(
            length % self.mesh.seq == 0,
            f"mesh.seq is {self.mesh.seq}: it must divide data.sequence_length, {length}",
        )
        rows, parts = self.data.batch_rows, self.mesh.replica * self.mesh.data * self.accumulation
        require(
            rows % parts == 0,
            f"data.batch_rows is {rows}: it must be a multiple of "
            f"mesh.replica x mesh.data x accumulation = {parts}",
        )
        kept, vocabulary = self.candidates, self.model.vocabulary
        require(
            kept <= vocabulary,
            f"loss.sampler.candidates is {kept}, more than the vocabulary's {vocabulary}: "
            "choose fewer",
        )
        self._check_beginning()
        self._check_untaught()

    def _check_beginning(self) -> None:
        """Moments come from a run's folder, and some sizes keep the RoPE they begin with."""
        require(
            self.initial_moments == "fresh" or self.initial_weights is not None,
            f"initial_moments is {self.initial_moments!r}, but initial_weights is None: name the "
            "folder of the run whose moments are kept",
        )
        factor, short = self.model.global_rope_factor, kept_short(self.model)
        require(
            short is None or factor == 1,
            f"model.global_rope_factor is {factor:g}, but {short} stays at 32,768 tokens, as "
            "published: leave it at 1, or train 4B or more",
        )

    def _check_untaught(self) -> None:
        """Rows that learn from the text alone need a store that is silent, and a loss of theirs."""
        loss, untaught = self.loss, [s.path for s in self.data.train if s.weight and not s.taught]
        if not isinstance(loss, Distillation) or not untaught:
            return
        require(
            isinstance(loss.teacher, Stored),
            f"source {untaught[0]!r} has taught=False, but a teacher in the step speaks of every "
            "row: leave taught=False away, or store its targets (loss.teacher=Stored(...))",
        )
        require(
            loss.is_mixed or loss.hard_label_weight > 0.0,
            f"source {untaught[0]!r} has taught=False and would learn nothing, for "
            f"loss.temperature is {loss.temperature} and loss.student {loss.student!r}: set them "
            "to 1 and 'full', or loss.hard_label_weight above 0",
        )

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.data.batch_rows * self.data.sequence_length

    @property
    def candidates(self) -> int:
        """A teacher's candidates of each position; 0 where the text is the target."""
        if not isinstance(self.loss, Distillation):
            return 0
        return size(self.loss.sampler, self.model.vocabulary)

    @property
    def row_images(self) -> tuple[int, int, int] | None:
        """The images of a row, soft tokens of one, and their width; None for text alone."""
        vision, images = self.model.vision, self.data.images
        return (images.per_row, vision.tokens, vision.width) if vision and images else None


# A run to show the fields of: `gemma-train train --help`.
EXAMPLE = RunConfig(
    folder="runs/example",
    model=GEMMA3_1B,
    data=DataConfig(tokenizer="tokenizer.model", train=(TokenSource(path="data/train"),)),
    steps=100_000,
)

_CURE = "put it back as it was written"
_TOO_DEEP = (RecursionError, MemoryError)  # what Python's parser says of deep nesting

_CONFIGS = {
    config.__name__: config
    for config in (
        RunConfig,
        GemmaConfig,
        VisionConfig,
        DataConfig,
        ImageRows,
        TokenSource,
        NextToken,
        Distillation,
        Stored,
        Online,
        TopK,
        Gumbel,
        Multinomial,
        Counts,
        Priority,
        Dense,
        OptimizerConfig,
        ComputeConfig,
        MeshConfig,
        EvaluationConfig,
        GuardConfig,
    )
}
__all__ = [
    "ComputeConfig",
    "Counts",
    "DataConfig",
    "Dense",
    "Distillation",
    "EvaluationConfig",
    "GemmaConfig",
    "GuardConfig",
    "Gumbel",
    "ImageRows",
    "MeshConfig",
    "Multinomial",
    "NextToken",
    "Online",
    "OptimizerConfig",
    "Priority",
    "RunConfig",
    "Stored",
    "TokenSource",
    "TopK",
    "VisionConfig",
    "changed",
    "load",
    "read_model_record",
    "read_record",
    "record",
    "recorded",
]


def _is_field(config: Any, name: str) -> bool:
    """Whether a dotted name is a field, or one of a config within."""
    first, _, rest = name.partition(".")
    if not is_dataclass(config) or first not in {field.name for field in fields(config)}:
        return False
    return not rest or _is_field(getattr(config, first), rest)


def load(file: str) -> RunConfig:
    """The config of a run's Python file, which is executed. Raises `UserError` for all mistakes."""
    return load_definition(file, "config", RunConfig)


def record(config: RunConfig | GemmaConfig) -> str:
    """The config as the text of a config file, from which `load` and `read_record` restore it."""
    names = ", ".join(sorted(_CONFIGS))
    body = pprint.pformat(config, width=96, sort_dicts=False)
    return (
        '"""A record, written by gemma_train."""\n\n'
        f"from gemma_train.config import {names}\n\nconfig = {body}\n"
    )


def read_record(folder: str) -> RunConfig:
    """The config of the run in `folder`, without executing its record."""
    file = storage.path(folder) / RECORD
    require(file.exists(), f"{folder!r} holds no {RECORD}: name the folder of a run")
    return recorded(read_text(file, _CURE), str(file), RunConfig)


def read_model_record(file: epath.Path) -> GemmaConfig:
    """The architecture recorded in a file, without executing it."""
    return recorded(read_text(file, _CURE), str(file), GemmaConfig)


def recorded[Kind](text: str, place: str, kind: type[Kind]) -> Kind:
    """The config that `record` made this text of; errors name the place where it was found."""
    try:
        tree = ast.parse(text)
        values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        if not values:
            raise ValueError("it assigns nothing")
        within = "model" if kind is GemmaConfig else ""
        config = _evaluate(values[-1], within)
        if not isinstance(config, kind):
            raise ValueError(f"no {kind.__name__} in it")
        check_fields(config, within)
    except (SyntaxError, UserError, ValueError, TypeError, IndexError, *_TOO_DEEP) as error:
        raise UserError(f"{place} is not the record of a {kind.__name__}: {error}") from error
    return config


def changed[Config](config: Config, values: Mapping[str, Any], within: str = "") -> Config:
    """A config with fields such as `optimizer.peak_lr` replaced, all of them at once.

    `within` is its own name, as in 'optimizer.'. Raises `UserError` for a name that is no field,
    and where the config would contradict itself.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = value
    known = [one.name for one in fields(config)] if is_dataclass(config) else []
    for first in parts:
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            whole = f"{within}{next(name for name in values if name.split('.')[0] == first)}"
            raise UserError(f"{whole!r} is no field of a run: no {first!r} here, {hint}")
    new = {}
    for first, inner in parts.items():
        whole = inner.pop("") if "" in inner else getattr(config, first)
        new[first] = changed(whole, inner, f"{within}{first}.") if inner else whole
    return replace(config, **new)


def _evaluate(node: ast.expr, name: str) -> Any:
    """The value of a literal, a tuple, or a call of a config class with keywords.

    `name` is that of the field it is for.
    """
    match node:
        case ast.Call(func=ast.Name(id=kind), args=[], keywords=keywords) if kind in _CONFIGS:
            values = {
                field: _evaluate(keyword.value, f"{name}.{field}".lstrip("."))
                for keyword in keywords
                for field in [keyword.arg or ""]
            }
            check_values(_CONFIGS[kind], values, name)
            return _CONFIGS[kind](**values)
        case ast.Tuple(elts=elements):
            return tuple(_evaluate(one, f"{name}[{i}]") for i, one in enumerate(elements))
        case _:
            return ast.literal_eval(node)
