"""`gemma-train context`: figures, tables and a picture of runs over growing context."""

import json

import numpy as np
import pytest

from gemma_train.commands import command_line
from gemma_train.config import read_record
from gemma_train.conversion.load import load_model
from gemma_train.data.long_rows import long_rows
from gemma_train.data.shards import TokenDataset
from gemma_train.losses.next_token import mean_next_token_loss
from gemma_train.tokenizer.tokenizer import Tokenizer

QUICK = ("--rows", "3", "--window", "16")


def test_it_measures_beyond_the_context_with_and_without_rescaling(finished_run, capsys):
    folder = finished_run[0]
    words = ["context", str(folder), "--lengths", "96", "160", *QUICK, "--rope-factor", "1", "8"]
    assert command_line.run(words) == 0
    told = capsys.readouterr().out
    assert "after 12 steps; 3 rows of 160 tokens, each within one of" in told
    assert "RoPE factor 1 on" in told and "RoPE factor 8 on" in told
    found = json.loads((folder / "context.json").read_text())
    assert (found["lengths"], found["window"], found["rows"]) == ([96, 160], 16, 3)
    assert [one["rope_factor"] for one in found["models"]] == [1.0, 8.0]
    picture = (folder / "context.svg").read_text()
    assert f"{folder}, RoPE factor 8" in picture and (folder / "context.png").exists()

    model, data = load_model(str(folder)), read_record(str(folder)).data
    text_bt = long_rows(data, 160, 3).ids_bt
    ids_bt = np.insert(text_bt, 0, Tokenizer.load(data.tokenizer).bos, axis=1)
    own, scaled = found["models"]
    sizes = [one["stop"] - one["first"] for one in own["by_position"]]
    mean = np.average([one["loss"]["mean"] for one in own["by_position"]], weights=sizes)
    assert mean == pytest.approx(float(mean_next_token_loss(model, ids_bt)), rel=1e-4)
    windows = [
        [one["final_window"]["mean"] for one in figures["at_length"]] for figures in (own, scaled)
    ]
    assert windows[0] != windows[1]


def test_several_runs_are_lines_of_one_picture(finished_run, capsys):
    folder = finished_run[0]
    again = folder.parent / "again"
    again.symlink_to(folder)
    words = ["context", str(again), str(folder), "--lengths", "96", *QUICK]
    assert command_line.run(words) == 0
    picture = (folder / "context.svg").read_text()
    assert f"{again}, RoPE factor 1" in picture and f"{folder}, RoPE factor 1" in picture
    again.unlink()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--window", "97"], "window is 97: all of it must be in sight"),
        (["--rope-factor", "0"], "rope_factor is 0.0: it must be above 0"),
        (["--mesh.seq", "5"], "mesh.seq is 5: it must divide all lengths, also 96"),
        (["--lengths", "96", "999999"], "ask for shorter lengths"),
        (["--mesh.data", "16"], "but this runtime has"),
    ],
)
def test_a_mistake_is_a_line(words, line, finished_run, refused):
    given = {"--lengths": "96", "--window": "16", "--rows": "3"}
    base = [word for pair in given.items() if pair[0] not in words for word in pair]
    assert line in refused("context", finished_run[0], *base, *words)


def test_a_single_row_is_refused_before_anything_is_computed(finished_run, refused):
    folder, _ = finished_run
    (held_out,) = read_record(str(folder)).data.held_out
    half = str(len(TokenDataset(held_out)) // 2 + 1)  # two of them do not fit
    line = refused("context", folder, "--lengths", half, *QUICK)
    assert f"1 rows of {int(half):,}, and an interval needs 2" in line


def test_a_run_is_asked_for(refused):
    assert "runs" in refused("context")
