"""From a format's tensors to our parameters and back, by the one name table.

Both ways are lazy: what comes out is read when it is written.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from einops import rearrange

from gemma_train.conversion.names import EMBEDDING, PADDED_ROWS, PADDING, parameters
from gemma_train.conversion.place import Format, Parameter, Place, shape_of
from gemma_train.conversion.tensors import Tensor, Tensors
from gemma_train.conversion.vision_names import ENCODER
from gemma_train.errors import UserError, require
from gemma_train.model.config import GemmaConfig, VisionConfig


def to_ours(
    theirs: Mapping[str, Tensor],
    config: GemmaConfig | VisionConfig,
    format: Format,
    *,
    source: str,
    wide_gates: bool | None = None,
) -> Tensors:
    """Our parameters from a format's tensors: of a model, or of an encoder by itself.

    Raises `UserError` naming the first tensor that is missing, unexpected or of the wrong shape.
    """
    places = _places(parameters(config, wide_gates=wide_gates), format)
    expected, rows = {}, {}
    for name, parts in places.items():
        rows[name] = _table_rows(theirs.get(name), parts, format)
        sizes = parts[0][1].sizes
        expected[name] = _their_shape(parts, {**sizes, "v": rows[name]} if rows[name] else sizes)
    check_shapes(theirs, expected, source)
    ours: Tensors = {}
    for name, parts in places.items():
        for our_name, parameter, place in parts:
            ours[our_name] = _take(theirs[name], parameter, place)
        if rows[name] > parts[0][1].sizes.get("v", 0):
            ours[PADDING] = _rows(theirs[name], slice(parts[0][1].sizes["v"], None))
    return ours


def check_shapes(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Raise `UserError`, after `source`, for a tensor that is missing, unexpected or misshapen."""
    if missing := [name for name in expected if name not in found]:
        raise UserError(f"{source}: {_first(missing)} missing")
    if unexpected := [name for name in found if name not in expected]:
        raise UserError(f"{source}: {_first(unexpected)} unexpected in this model")
    for name, shape in expected.items():
        here = found[name].shape
        require(
            here == shape,
            f"{source}: tensor {name!r} has shape {here}, but this model's is {shape}",
        )


def from_ours(
    ours: Mapping[str, Tensor],
    config: GemmaConfig | VisionConfig,
    format: Format,
    *,
    wide_gates: bool | None = None,
) -> Tensors:
    """A format's tensors from our parameters; a padded table gets its rows back, or zeros.

    A model may come without its encoder. Raises `UserError` naming the first parameter that the
    format has no place for: GGUF has none for images.
    """
    with_encoder = any(name.startswith(ENCODER) for name in ours)
    rows = [
        row
        for row in parameters(config, wide_gates=wide_gates)
        if with_encoder or not row.name.startswith(ENCODER)
    ]
    places = _places(rows, format)
    placed = {name for parts in places.values() for name, _, _ in parts} | {PADDING}
    if left_over := [name for name in ours if name not in placed]:
        raise UserError(
            f"{_first(left_over)} without a place in format {format!r}: "
            "write the model without its vision (`Weights.text_alone`)"
        )
    theirs = {
        name: _assemble([(ours[n], parameter, place) for n, parameter, place in parts])
        for name, parts in places.items()
    }
    if isinstance(config, GemmaConfig) and (added := _padding_rows(ours, config, format)):
        (name,) = (n for n, parts in places.items() if parts[0][0] == EMBEDDING)
        theirs[name] = _padded(theirs[name], added, ours.get(PADDING))
    return theirs


_Part = tuple[str, Parameter, Place]


def _places(rows: Iterable[Parameter], format: Format) -> dict[str, list[_Part]]:
    """Each tensor of a format and the parameters of ours in it, in the order of their parts."""
    found: dict[str, list[_Part]] = {}
    templates: dict[str, list[tuple[Parameter, Place]]] = {}
    for parameter in rows:
        place: Place | None = getattr(parameter, format)
        if place is not None:
            templates.setdefault(place.name, []).append((parameter, place))
    for template, parts in templates.items():
        for layer in parts[0][0].layers:
            found[template.format(layer)] = [
                (parameter.name.format(layer), parameter, place) for parameter, place in parts
            ]
    return found


def _their_shape(parts: list[_Part], sizes: Mapping[str, int]) -> tuple[int, ...]:
    _, _, place = parts[0]
    shape = shape_of(place.axes, sizes)
    return shape if place.part is None else (len(parts), *shape)


def _table_rows(tensor: Tensor | None, parts: list[_Part], format: Format) -> int:
    """Rows to expect of the table: the vocabulary, or with the padding that the format adds.

    0 of whatever is no table.
    """
    name, parameter, _ = parts[0]
    if name != EMBEDDING:
        return 0
    vocabulary = parameter.sizes["v"]
    padded = PADDED_ROWS[format].get(vocabulary, vocabulary)
    is_padded = tensor is not None and tensor.shape[:1] == (padded,)
    return padded if is_padded else vocabulary


def _padding_rows(ours: Mapping[str, Tensor], config: GemmaConfig, format: Format) -> int:
    """Rows to add to the table: those of the format.

    In Hugging Face's only where they are kept, or where images need an id beyond the vocabulary.
    """
    if EMBEDDING not in ours:
        return 0
    rows = PADDED_ROWS[format].get(config.vocabulary, config.vocabulary) - config.vocabulary
    kept = ours[PADDING].shape[0] if PADDING in ours else 0
    return rows if format != "hf" or config.vision or kept == rows else 0


def _padded(table: Tensor, rows: int, kept: Tensor | None) -> Tensor:
    shape = (table.shape[0] + rows, table.shape[1])

    def read() -> np.ndarray:
        whole = np.zeros(shape, table.dtype)
        whole[: table.shape[0]] = table.read()
        if kept is not None and kept.shape[0] == rows:
            whole[table.shape[0] :] = kept.read()
        return whole

    return Tensor(shape, table.dtype, read)


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    count = len(range(*rows.indices(tensor.shape[0])))
    return Tensor((count, *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[rows])


def _take(theirs: Tensor, parameter: Parameter, place: Place) -> Tensor:
    """One of ours out of a tensor of theirs."""

    def read() -> np.ndarray:
        array = theirs.read()
        if place.part is not None:
            array = array[place.part].copy()  # a view would hold the other parts as well
        if parameter.name == EMBEDDING:
            array = array[: parameter.sizes["v"]]
        if place.offset:
            array = (array.astype(np.float32) - place.offset).astype(theirs.dtype)
        if place.axes == parameter.axes:
            return array
        sizes = {letter: parameter.sizes[letter] for letter in parameter.axes.split()}
        return rearrange(array, f"{place.axes} -> {parameter.axes}", **sizes)

    return Tensor(parameter.shape, theirs.dtype, read)


def _assemble(parts: list[tuple[Tensor, Parameter, Place]]) -> Tensor:
    """A tensor of theirs out of one or more of ours."""

    def one(tensor: Tensor, parameter: Parameter, place: Place) -> np.ndarray:
        array = tensor.read()
        if place.offset:
            array = (array.astype(np.float32) + place.offset).astype(tensor.dtype)
        return rearrange(array, f"{parameter.axes} -> {place.axes}")

    tensor, parameter, place = parts[0]
    shape = shape_of(place.axes, parameter.sizes)
    if place.part is None:
        return Tensor(shape, tensor.dtype, lambda: np.ascontiguousarray(one(*parts[0])))
    return Tensor(
        (len(parts), *shape), tensor.dtype, lambda: np.stack([one(*part) for part in parts])
    )


def _first(names: Iterable[str]) -> str:
    first, *others = names
    more = f" (and {len(others)} more) are" if others else " is"
    return f"tensor {first!r}{more}"
