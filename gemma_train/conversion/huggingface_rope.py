"""RoPE in Hugging Face's config.json: two bases, and the factor of the global one.

Reads the keys of transformers 4 (`rope_theta`, `rope_local_base_freq`, `rope_scaling`) and of 5
(`rope_parameters`). Some folders that circulate have wrong bases; a key of ours says of unpublished
ones that they are no mistake.
"""

from dataclasses import dataclass
from typing import Any

from gemma_train.errors import require
from gemma_train.model.config import GemmaConfig

_LOCAL_BASE, _GEMMA3_GLOBAL_BASE = 10_000.0, 1_000_000.0
_MEANT = "meant_rope_theta"  # local, global: in our folders, where they are not the published


@dataclass(frozen=True, kw_only=True)
class Rope:
    """As `GemmaConfig` has it."""

    local_rope_base: float
    global_rope_base: float
    global_rope_factor: float


def read_rope(kind: str, keys: dict[str, Any], file: str, expected: GemmaConfig | None) -> Rope:
    """What the keys of a text model of this kind say; `UserError` for what Gemma does not have.

    Bases other than the published need to be `expected`, or said to be meant.
    """
    parameters = keys.get("rope_parameters") or {}
    everywhere = {**(keys.get("rope_scaling") or {}), **parameters}
    local: dict[str, Any] = {}
    if kind == "gemma3_text":
        everywhere = {**everywhere, **parameters.get("full_attention", {})}
        local = {"rope_theta": keys.get("rope_local_base_freq", _LOCAL_BASE)}
        local |= parameters.get("sliding_attention", {})
    published = _published(kind)
    base = float(everywhere.get("rope_theta", keys.get("rope_theta", published)))
    local_base = float(local.get("rope_theta", base))
    meant = {(_LOCAL_BASE, published)}
    if expected is not None:
        theirs = expected.local_rope_base if kind == "gemma3_text" else expected.global_rope_base
        meant.add((theirs, expected.global_rope_base))
    meant |= {tuple(keys[_MEANT])} if _MEANT in keys else set()
    require(
        (local_base, base) in meant,
        f"{file}: rope_theta is {base:g} on global layers and {local_base:g} on local ones, but "
        f"this Gemma has {published:g} and {_LOCAL_BASE:g}: mend the file, or, if it is meant, "
        "name the config of a run that says so (--config)",
    )
    require(
        float(local.get("factor", 1.0)) == 1,
        f"{file}: local layers have a RoPE factor of {local.get('factor')}: Gemma has none there",
    )
    rope_type = local.get("rope_type", local.get("type", "default"))
    require(rope_type == "default", f"{file}: local layers have rope_type {rope_type!r}")
    rope_type = everywhere.get("rope_type", everywhere.get("type", "default"))
    require(
        rope_type == "default" or (rope_type == "linear" and kind == "gemma3_text"),
        f"{file}: rope_type is {rope_type!r}: Gemma has 'default', and 'linear' in Gemma 3",
    )
    factor = 1.0
    if rope_type == "linear":
        require("factor" in everywhere, f"{file}: rope_type is 'linear', but it has no factor")
        factor = float(everywhere["factor"])
    return Rope(local_rope_base=local_base, global_rope_base=base, global_rope_factor=factor)


def write_rope(kind: str, config: GemmaConfig) -> dict[str, Any]:
    """The keys of a text model of this kind."""
    keys: dict[str, Any] = {"rope_theta": config.global_rope_base}
    bases = (config.global_rope_base, config.global_rope_base)
    if kind == "gemma3_text":
        factor = config.global_rope_factor
        keys["rope_local_base_freq"] = config.local_rope_base
        keys["rope_scaling"] = {"rope_type": "linear", "factor": factor} if factor != 1 else None
        bases = (config.local_rope_base, config.global_rope_base)
    if bases != (_LOCAL_BASE, _published(kind)):
        keys[_MEANT] = bases
    return keys


def _published(kind: str) -> float:
    """The base of global layers."""
    return _GEMMA3_GLOBAL_BASE if kind == "gemma3_text" else _LOCAL_BASE
