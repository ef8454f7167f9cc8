"""RoPE in config.json: bases that are not the published, and what Gemma does not have."""

from dataclasses import replace

import pytest

from gemma_train.conversion.huggingface_config import read_config
from gemma_train.errors import UserError
from gemma_train.model import sizes
from tests.conversion.test_huggingface_config import (
    EIGHTFOLD,
    GLOBAL,
    LOCAL,
    fixture,
    refusal_of,
    written,
)


def test_an_unusual_base_of_rope_needs_a_config_that_expects_it():
    keys = {**fixture("gemma3_mqa"), "rope_parameters": {"rope_theta": 500_000.0}}
    meant = replace(read_config(fixture("gemma3_mqa"), ""), global_rope_base=500_000.0)
    with pytest.raises(UserError, match="rope_theta is 500000 on global layers and 10000 on local"):
        read_config(keys, "config.json")
    with pytest.raises(UserError, match="rope_theta is 500000 "):
        read_config(keys, "config.json", replace(meant, local_rope_base=500_000.0))
    assert read_config(keys, "config.json", meant) == meant


def ropes(local: dict, everywhere: dict) -> dict:
    return {"rope_parameters": {LOCAL: local, GLOBAL: everywhere}}


MILLION, TEN_THOUSAND = {"rope_theta": 1_000_000.0}, {"rope_theta": 10_000.0}
THETA = "rope_theta is {} on global layers and {} on local ones, but this Gemma has "


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        (
            "gemma1_mha",
            {"rope_parameters": MILLION},
            THETA.format("1e+06", "1e+06") + "10000 and 1",
        ),
        ("gemma2_gqa", {"rope_parameters": None, **MILLION}, THETA.format("1e+06", "1e+06")),
        (
            "gemma3_mqa",
            ropes(TEN_THOUSAND, TEN_THOUSAND),
            THETA.format(10000, 10000) + "1e+06 and 10000: mend the file, or, if it is meant, name",
        ),
        ("gemma3_mqa", {"rope_parameters": None, **TEN_THOUSAND}, THETA.format(10000, 10000)),
        ("gemma3_mqa", ropes(MILLION, MILLION), THETA.format("1e+06", "1e+06")),
        (
            "gemma3_mqa",
            ropes({**TEN_THOUSAND, **EIGHTFOLD}, MILLION),
            "local layers have a RoPE factor of 8.0: Gemma has none there",
        ),
        (
            "gemma3_mqa",
            ropes(TEN_THOUSAND, {**MILLION, "rope_type": "yarn", "factor": 8.0}),
            "rope_type is 'yarn': Gemma has 'default', and 'linear' in Gemma 3",
        ),
        (
            "gemma2_gqa",
            {"rope_parameters": {**TEN_THOUSAND, **EIGHTFOLD}},
            "rope_type is 'linear': ",
        ),
        (
            "gemma3_mqa",
            {"rope_parameters": "linear"},
            "rope_parameters is 'linear': it must be a d",
        ),
    ],
)
def test_rope_that_gemma_does_not_have_is_refused(name, change, line):
    assert refusal_of(name, change).startswith(f"config.json: {line}")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("GEMMA1_2B", {"local_rope_base": 5e5, "global_rope_base": 5e5}),
        ("GEMMA3_1B", {"local_rope_base": 5e5}),
    ],
)
def test_unpublished_bases_are_written_as_meant_and_published_ones_need_no_word(name, change):
    published = getattr(sizes, name)
    unusual = replace(published, **change)
    assert read_config(written(unusual), "config.json") == unusual
    assert written(unusual).keys() - written(published).keys() == {"meant_rope_theta"}
