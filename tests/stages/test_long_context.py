"""The long-context stage as a value: what it changes of a run, what it leaves, what it refuses."""

from dataclasses import replace

import pytest

from gemma_train.config import (
    DataConfig,
    ImageRows,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    TokenSource,
    read_record,
    record,
)
from gemma_train.data.recipe import ImageEncoding, ImageTextSource, Recipe, TextSource
from gemma_train.drift import differences
from gemma_train.errors import UserError
from gemma_train.model import sizes
from gemma_train.model.sizes import GEMMA3_1B, GEMMA3_4B, GEMMA3_270M, SO400M, kept_short
from gemma_train.stages.long_context import long_context, long_documents
from gemma_train.tokenizer.training import TokenizerConfig

BASE = RunConfig(
    folder="runs/base",
    model=GEMMA3_4B,
    data=DataConfig(
        tokenizer="tokenizer.model",
        train=(TokenSource(path="data/text", weight=3.0),),
        held_out=("data/held_out",),
        sequence_length=32_768,
        batch_rows=32,
    ),
    steps=1000,
    optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2000, schedule="linear"),
    mesh=MeshConfig(replica=2, data=4, seq=2),
)
STAGE = {"tokens": 1e9, "peak_lr": 1e-5}


def test_all_that_the_stage_changes_of_a_run():
    books = TokenSource(path="data/books", weight=2.0)
    long = long_context(
        BASE,
        length=131_072,
        warmup_steps=7,
        documents=(books,),
        held_out=("data/books_held_out",),
        moments="kept",
        **STAGE,
    )
    assert long.folder == "runs/base_long"
    assert [*differences(BASE, long).values()] == [
        "model.context was 32768, is 131072",
        "model.global_rope_factor was 1.0, is 8.0",
        f"data.train was {BASE.data.train}, is {(*BASE.data.train, books)}",
        "data.held_out was ('data/held_out',), is ('data/held_out', 'data/books_held_out')",
        "data.sequence_length was 32768, is 131072",
        "data.batch_rows was 32, is 8",
        "steps was 1000, is 954",
        "initial_weights was None, is 'runs/base'",
        "initial_moments was 'fresh', is 'kept'",
        "optimizer.peak_lr was 0.0003, is 1e-05",
        "optimizer.warmup_steps was 2000, is 7",
    ]


def test_local_layers_keep_their_positions_and_the_factor_multiplies():
    once = long_context(BASE, factor=2.5, **STAGE)
    twice = long_context(once, factor=2, **STAGE)
    for run, factor, context in ((once, 2.5, 81_920), (twice, 5, 163_840)):
        assert run.model.rope("local") == BASE.model.rope("local") == (10_000.0, 1.0)
        assert run.model.rope("global") == (1_000_000.0, factor)
        assert run.model.context == run.data.sequence_length == context
    assert twice.initial_weights == once.folder == "runs/base_long"
    assert twice.folder == "runs/base_long_long"


def test_rows_and_context_each_grow_by_the_factor_where_they_differed():
    half = replace(BASE, data=replace(BASE.data, sequence_length=16_384))
    long = long_context(half, factor=4, **STAGE)
    assert (long.model.context, long.data.sequence_length) == (131_072, 65_536)


@pytest.mark.parametrize(
    ("rows", "accumulation", "mesh", "wanted"),
    [
        (32, 1, MeshConfig(), 4),
        (30, 1, MeshConfig(), 3),  # 3.75 rows' tokens
        (4, 1, MeshConfig(), 1),  # half a row's: there is no less than one
        (64, 1, MeshConfig(replica=3), 6),  # of 8
        (64, 2, MeshConfig(data=2), 8),
        (64, 1, MeshConfig(data=16), 16),  # more tokens than before: the mesh has to be fed
    ],
)
def test_a_step_keeps_its_tokens_as_far_as_whole_rows_and_the_mesh_allow(
    rows, accumulation, mesh, wanted
):
    data = replace(BASE.data, batch_rows=rows)
    run = replace(BASE, mesh=MeshConfig(), data=data, accumulation=accumulation)
    long = long_context(run, mesh=mesh, **STAGE)
    assert (long.mesh, long.data.batch_rows) == (mesh, wanted)
    assert long_context(run, mesh=mesh, batch_rows=48, **STAGE).data.batch_rows == 48


def test_an_evaluation_keeps_its_tokens_and_a_row_has_room_for_more_images():
    run = replace(
        BASE,
        model=replace(BASE.model, vision=SO400M),
        data=replace(BASE.data, images=ImageRows(store="data/images", per_row=3)),
        evaluation=replace(BASE.evaluation, rows=64),
    )
    long = long_context(run, length=131_072, **STAGE)
    assert long.evaluation.rows == 16
    assert long.data.images == ImageRows(store="data/images", per_row=12)
    assert long_context(run, factor=100, **STAGE).evaluation.rows == 1


def test_the_record_of_the_stage_keeps_the_factor(tmp_path):
    long = long_context(BASE, **STAGE)
    (tmp_path / "config.py").write_text(record(long))
    assert read_record(str(tmp_path)) == long
    assert "global_rope_factor=8.0" in (tmp_path / "config.py").read_text()


@pytest.mark.parametrize("factor", [1.0, 0.5, 0, -8, float("nan"), float("inf")])
def test_a_factor_that_stretches_nothing_is_refused(factor):
    with pytest.raises(UserError, match=f"^factor is {factor:g}: it must be above 1, such as 8$"):
        long_context(BASE, factor=factor, **STAGE)


@pytest.mark.parametrize("length", [0, 16_384, 32_768])
def test_a_length_that_is_no_longer_is_refused(length):
    with pytest.raises(UserError, match=f"length is {length}: it must be longer than the run's mo"):
        long_context(BASE, length=length, **STAGE)


SHORT = {"Gemma 3 270M": GEMMA3_270M, "Gemma 3 1B": GEMMA3_1B}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"vision": SO400M, "window": 512},
        {"context": 65_536},
        {"context": 4096, "window": 64, "global_rope_base": 10_000.0, "pattern": ("global",)},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SHORT)
def test_the_sizes_that_stay_at_32k_are_refused_however_they_are_changed(name, change):
    data = replace(BASE.data, sequence_length=1024)
    run = replace(BASE, model=replace(SHORT[name], **change), data=data)
    line = f"model.global_rope_factor is 8, but {name} stays at 32,768 tokens, as published: leave"
    with pytest.raises(UserError, match=line):
        long_context(run, **STAGE)


def test_no_other_size_is_taken_for_them():
    published = {name: size for name, size in vars(sizes).items() if name.startswith("GEMMA")}
    short = {name for name, size in published.items() if kept_short(size)}
    assert short == {"GEMMA3_270M", "GEMMA3_1B"}
    assert kept_short(replace(GEMMA3_1B, layers=25)) is None


def test_long_documents_come_from_the_same_files_by_the_same_tokenizer():
    text = TextSource(name="text", files=("*.txt",), licence="x", held_out_fraction=0.2)
    pictures = ImageTextSource(name="pictures", files=("*.png",), licence="x")
    plain = Recipe(
        name="mine",
        folder="data/mine",
        tokenizer=TokenizerConfig(path="data/mine/tokenizer.model", vocabulary=600),
        sources=(text,),
    )
    long = long_documents(plain, minimum_characters=5000)
    assert long == replace(
        plain,
        name="mine_long",
        folder="data/mine_long",
        tokenizer="data/mine/tokenizer.model",
        sources=(replace(text, minimum_characters=5000),),
    )
    both = replace(plain, sources=(text, pictures), images=ImageEncoding(encoder="siglip"))
    assert long_documents(both, minimum_characters=5000) == long
