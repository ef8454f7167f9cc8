"""Tensors that are not read yet: a model where it is stored.

Nothing is read before it is written, so that a conversion holds one tensor at a time, whatever the
size of the model.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from gemma_train.conversion.names import PADDING
from gemma_train.conversion.vision_names import ENCODER
from gemma_train.errors import UserError, require
from gemma_train.model.config import GemmaConfig

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}


def dtype_name(dtype: np.dtype) -> str:
    """Of one of `DTYPES`."""
    return next(name for name, known in DTYPES.items() if known == dtype)


@dataclass(frozen=True)
class Tensor:
    """A tensor where it is stored; `read` brings it into memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize

    def cast(self, dtype: np.dtype) -> "Tensor":
        """The same in another dtype; no copy where it has it already."""
        if dtype == self.dtype:
            return self
        return Tensor(self.shape, dtype, lambda: self.read().astype(dtype))


Tensors = dict[str, Tensor]
_IMAGES = (ENCODER, "soft_tokens/")  # our names of what sees them


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model where it is stored: its config, and its parameters by our names, layer by layer.

    Names are those of `names.py`: 'layers/3/attention/query'. `embedding/padding` may hold rows of
    the table that are no part of the model, `encoder/...` the frozen vision encoder. `left_out` are
    stored tensors that are none of ours.
    """

    source: str
    format: str
    config: GemmaConfig
    tensors: Tensors
    tokenizer: str | None = None  # path of a SentencePiece model
    step: int | None = None  # that a run's checkpoint was saved after
    encoder_sha256: str | None = None  # of the encoder that a run has seen images by
    left_out: tuple[str, ...] = ()

    @property
    def parameters(self) -> Tensors:
        """The tensors that are part of the model, and trained."""
        others = (PADDING, ENCODER)
        return {n: tensor for n, tensor in self.tensors.items() if not n.startswith(others)}

    @property
    def encoder(self) -> Tensors:
        """The tensors of the vision encoder; none of a model that came without."""
        return {n: tensor for n, tensor in self.tensors.items() if n.startswith(ENCODER)}

    @property
    def dtype(self) -> np.dtype:
        """The dtype of every parameter of the text. Raises `UserError` where they differ.

        What sees images may have another, one in all of it: the gemma library keeps it in float32.
        """
        text, images = {}, {}
        for name, tensor in self.tensors.items():
            (images if name.startswith(_IMAGES) else text)[name] = tensor
        if images:
            self._one_dtype(images)
        return self._one_dtype(text)

    @property
    def dtypes(self) -> str:
        """In words: of the text and, where it is another, of what sees images."""
        images = {tensor.dtype for n, tensor in self.tensors.items() if n.startswith(_IMAGES)}
        others = ", ".join(str(dtype) for dtype in images - {self.dtype})
        return str(self.dtype) + (f" (what sees images in {others})" if others else "")

    def _one_dtype(self, tensors: Tensors) -> np.dtype:
        first, dtype = next((name, tensor.dtype) for name, tensor in tensors.items())
        for name, tensor in tensors.items():
            require(
                tensor.dtype == dtype,
                f"{self.source} mixes dtypes: {name} is {tensor.dtype}, {first} is {dtype}; make "
                "them one with gemma-train convert --dtype",
            )
        return dtype

    def text_alone(self) -> "Weights":
        """The same model without what sees images, which is then among what is left out."""
        images = tuple(name for name in self.tensors if name.startswith(_IMAGES))
        return replace(
            self,
            config=replace(self.config, vision=None),
            tensors={name: t for name, t in self.tensors.items() if name not in images},
            left_out=self.left_out + images,
        )

    def check_encoder(self) -> None:
        """Raise `UserError` for a model that sees images, but came without its encoder."""
        if self.config.vision is not None and not self.encoder:
            raise UserError(
                f"{self.source} came without its vision encoder: put one in its folder encoder/ "
                "(conversion.encoder.save_encoder), or write its text alone (--config with "
                "model.vision None)"
            )

    def cast(self, dtype: np.dtype) -> "Weights":
        """The same, every parameter in one dtype."""
        return replace(
            self, tensors={name: tensor.cast(dtype) for name, tensor in self.tensors.items()}
        )


def stacked(ours: Mapping[str, Tensor], config: GemmaConfig) -> Tensors:
    """By the paths of the model's own leaves: blocks of all repetitions of the pattern as one."""
    length = len(config.pattern)
    repetitions = config.layers // length
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in ours.items():
        if not name.startswith("layers/"):
            groups[name] = [tensor]
            continue
        _, number, rest = name.split("/", 2)
        repetition, place = divmod(int(number), length)
        if repetition < repetitions:
            groups.setdefault(f"pattern/{place}/{rest}", []).append(tensor)
        else:
            groups[f"remainder/{place}/{rest}"] = [tensor]
    return {
        name: _stack(tensors) if name.startswith("pattern/") else tensors[0]
        for name, tensors in groups.items()
    }


def unstacked(leaves: Mapping[str, Tensor], config: GemmaConfig) -> Tensors:
    """The inverse of `stacked`. A stacked leaf is read once for all its layers, taken in turn."""
    length = len(config.pattern)
    ours: Tensors = {}
    for name, leaf in leaves.items():
        kind, _, rest = name.partition("/")
        if kind not in ("pattern", "remainder"):
            ours[name] = leaf
            continue
        place, rest = rest.split("/", 1)
        if kind == "remainder":
            ours[f"layers/{config.layers // length * length + int(place)}/{rest}"] = leaf
            continue
        for repetition, tensor in enumerate(slices(leaf)):
            ours[f"layers/{repetition * length + int(place)}/{rest}"] = tensor
    return ours


def stacked_encoder(ours: Mapping[str, Tensor]) -> Tensors:
    """By the paths of the encoder's own leaves: all its layers as one."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in ours.items():
        path = re.sub(r"^layers/\d+/", "layers/", name.removeprefix(ENCODER))
        groups.setdefault(path, []).append(tensor)
    return {
        path: _stack(tensors) if path.startswith("layers/") else tensors[0]
        for path, tensors in groups.items()
    }


def unstacked_encoder(leaves: Mapping[str, Tensor]) -> Tensors:
    """The inverse of `stacked_encoder`."""
    ours: Tensors = {}
    for path, leaf in leaves.items():
        kind, _, rest = path.partition("/")
        if kind != "layers":
            ours[ENCODER + path] = leaf
            continue
        for number, tensor in enumerate(slices(leaf)):
            ours[f"{ENCODER}layers/{number}/{rest}"] = tensor
    return ours


def slices(leaf: Tensor) -> Iterator[Tensor]:
    """The tensors along the first axis; the leaf is kept from the first read to the last one's."""
    kept: list[np.ndarray] = []
    count = leaf.shape[0]

    def read(index: int) -> np.ndarray:
        if not kept:
            kept.append(leaf.read())
        found = kept[0][index]
        if index == count - 1:
            kept.clear()
        return found

    for index in range(count):
        yield Tensor(leaf.shape[1:], leaf.dtype, lambda index=index: read(index))


def parcels(tensors: Mapping[str, Tensor], maximum_bytes: int) -> Iterator[Tensors]:
    """Tensors in turn, as many together as stay below a size; a larger one alone."""
    parcel: Tensors = {}
    for name, tensor in tensors.items():
        if parcel and sum(t.bytes for t in parcel.values()) + tensor.bytes > maximum_bytes:
            yield parcel
            parcel = {}
        parcel[name] = tensor
    if parcel:
        yield parcel


def _stack(tensors: list[Tensor]) -> Tensor:
    def read() -> np.ndarray:
        whole = np.empty(shape, tensors[0].dtype)
        for index, tensor in enumerate(tensors):
            whole[index] = tensor.read()
        return whole

    shape = (len(tensors), *tensors[0].shape)
    return Tensor(shape, tensors[0].dtype, read)
