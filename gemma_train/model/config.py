"""What tells one Gemma from another (GemmaConfig), and how one is computed (ComputeConfig)."""

import math
from dataclasses import dataclass
from typing import Literal

from gemma_train.errors import require
from gemma_train.vision import MOST_LAYERS, VisionConfig

Kind = Literal["local", "global"]


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """The architecture: every value in which Gemma 1, 2 and 3 and their sizes differ."""

    vocabulary: int  # rows of the embedding, tied to the output
    width: int  # of the residual stream
    layers: int  # transformer blocks
    query_heads: int  # query heads per layer
    key_value_heads: int  # key/value heads per layer; divides query_heads
    head_dimension: int  # of a head; not width / heads
    hidden: int  # feed-forward hidden units
    context: int  # longest sequence, in tokens
    pattern: tuple[Kind, ...] = ("global",)  # kinds of layers, repeated and cut at `layers`
    window: int | None = None  # tokens a local layer sees, itself included
    query_scale: float | None = (
        None  # queries are multiplied by its -1/2 power; head_dimension if None
    )
    query_key_norm: bool = False  # RMSNorm on queries and keys (Gemma 3)
    post_norms: bool = False  # RMSNorm on each branch's output too (Gemma 2 and 3)
    attention_soft_cap: float | None = None  # cap * tanh(scores / cap) (Gemma 2)
    final_soft_cap: float | None = None  # cap * tanh(logits / cap) (Gemma 2)
    local_rope_base: float = 10_000.0  # of local layers
    global_rope_base: float = 10_000.0  # of global layers
    global_rope_factor: float = 1.0  # positions of global layers are divided by it
    vision: VisionConfig | None = None  # of the frozen encoder; None sees no images (Gemma 1, 2)

    def __post_init__(self) -> None:
        require(
            self.layers <= MOST_LAYERS,
            f"model.layers is {self.layers}: at most {MOST_LAYERS:,} are believed",
        )
        for name in ("vocabulary", "width", "layers", "query_heads", "key_value_heads", "hidden"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name} is {value}: it must be at least 1")
        require(
            self.query_heads % self.key_value_heads == 0,
            f"model.key_value_heads is {self.key_value_heads}: it must divide "
            f"model.query_heads, {self.query_heads}",
        )
        require(
            self.head_dimension >= 2 and self.head_dimension % 2 == 0,
            f"model.head_dimension is {self.head_dimension}: rotary positions need an even number",
        )
        require(len(self.pattern) >= 1, "model.pattern is empty: name at least one kind of layer")
        require(
            "local" not in self.pattern or (self.window or 0) >= 1,
            f"model.window is {self.window}: local layers need a window of at least 1 token",
        )

        require(
            self.vision is None or self.window is None or self.vision.tokens <= self.window,
            f"model.window is {self.window}: it must hold an image, "
            f"{self.vision.tokens if self.vision else 0} soft tokens",
        )
        for name in (
            "query_scale",
            "attention_soft_cap",
            "final_soft_cap",
            "local_rope_base",
            "global_rope_base",
            "global_rope_factor",
        ):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"model.{name} is {value}: it must be a finite number above 0",
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every layer, first to last."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each parameter axis, by its letter."""
        return {
            "v": self.vocabulary,
            "d": self.width,
            "n": self.query_heads,
            "k": self.key_value_heads,
            "h": self.head_dimension,
            "f": self.hidden,
            **({"e": self.vision.width} if self.vision else {}),
        }

    def rope(self, kind: Kind) -> tuple[float, float]:
        """(base, factor) of the rotary positions of a layer of this kind."""
        if kind == "local":
            return self.local_rope_base, 1.0
        return self.global_rope_base, self.global_rope_factor


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the model is computed: none of it changes what the model is."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations and gathered weights
    attention: Literal["auto", "xla", "splash", "reference"] = "auto"  # splash on TPU, else xla
    remat: Literal["none", "full", "save_named"] = "full"  # none keeps gathered weights as well
    saved: tuple[str, ...] = ("attention_output",)  # products that save_named keeps
    offloaded: tuple[str, ...] = ()  # products that save_named keeps in the host's memory
    scan_neighbours: bool = False  # compile layers of one kind once: less to compile, more memory

    def __post_init__(self) -> None:
        for field in ("saved", "offloaded"):
            unknown = sorted(set(getattr(self, field)) - set(SAVABLE))
            require(
                not unknown,
                f"compute.{field} names {', '.join(unknown)}: choose from {', '.join(SAVABLE)}",
            )
        twice = sorted(set(self.saved) & set(self.offloaded))
        require(not twice, f"compute.offloaded names {', '.join(twice)}, as compute.saved does")

    @property
    def bytes(self) -> int:
        """Of one number of the compute dtype."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def kept(self) -> tuple[str, ...]:
        """The products that save_named does not compute again."""
        return self.saved + self.offloaded


# Products of a layer that a remat policy can keep, as they are named where they are computed.
SAVABLE = (
    "query",
    "key",
    "value",
    "attention_output",
    "attention_branch",
    "gate",
    "up",
    "feed_forward_branch",
)
