import dataclasses
import errno
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gemma_train import storage
from gemma_train.commands import prepare as prepare_command
from gemma_train.commands import tokenizer as tokenizer_command
from gemma_train.data.prepare import prepare, prepared
from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.data.shards import TokenDataset, verify
from gemma_train.data.token_writer import TokenWriter
from gemma_train.errors import UserError

RECIPE = """
from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.tokenizer.training import TokenizerConfig
recipe = Recipe(
    name="made",
    folder="out",
    tokenizer=TokenizerConfig(path="out/t.model", vocabulary=520, maximum_training_bytes=200_000),
    sources=(
        TextSource(
            name="web", files=("web.jsonl",), licence="CC0-1.0", format="jsonl",
            held_out_fraction=0.1,
        ),
    ),
)
"""


def write_texts(file: Path, count: int, words: int = 60) -> list[str]:
    source = random.Random(0)
    vocabulary = ["".join(source.choices("abcdefghij ", k=7)) for _ in range(300)]
    texts = [" ".join(source.choices(vocabulary, k=words)) for _ in range(count)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return texts


@pytest.fixture
def recipe(tmp_path, tokenizer) -> Recipe:
    write_texts(tmp_path / "web.jsonl", 300)
    source = TextSource(
        name="web",
        files=(f"{tmp_path}/web.jsonl",),
        licence="CC0-1.0",
        format="jsonl",
        held_out_fraction=0.1,
    )
    return Recipe(
        name="made",
        folder=f"{tmp_path}/out",
        tokenizer=tokenizer.name,
        sources=(source,),
        shard_tokens=5_000,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def quiet(_: str) -> None:
    pass


def stored_texts(folder: str, tokenizer) -> list[str]:
    dataset = TokenDataset(folder)
    tokens, starts, _ = dataset.read(0, len(dataset))
    documents = np.split(tokens, starts[1:])
    assert all(ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos for ids in documents)
    return [tokenizer.decode(ids[1:-1]) for ids in documents]


def test_every_document_is_stored_once_in_order_with_its_ends(recipe, tokenizer, tmp_path):
    found = prepare(recipe, tokenizer, threads=1, report=quiet)
    texts = [json.loads(line)["text"] for line in (tmp_path / "web.jsonl").open()]
    train, held_out = (
        stored_texts(f"{recipe.folder}/{part}", tokenizer) for part in ("train", "held_out")
    )
    assert train == [text for text in texts if text not in set(held_out)]
    assert sorted(train + held_out) == sorted(texts)
    assert 10 < len(held_out) < 60
    (source,) = found["train"].sources
    assert (source.documents, source.characters) == (len(train), sum(map(len, train)))
    assert source.tokens == len(TokenDataset(f"{recipe.folder}/train"))


def test_copies_of_a_document_are_never_split(recipe, tokenizer, tmp_path):
    text = (tmp_path / "web.jsonl").read_text()
    (tmp_path / "web.jsonl").write_text(text + "\n" + text)
    prepare(recipe, tokenizer, threads=1, report=quiet)
    train, held_out = (
        set(stored_texts(f"{recipe.folder}/{part}", tokenizer)) for part in ("train", "held_out")
    )
    assert not train & held_out


def test_the_datasets_are_the_same_for_any_number_of_threads(recipe, tokenizer, tmp_path):
    for threads in (1, 2, 5):
        other = dataclasses.replace(recipe, folder=f"{tmp_path}/{threads}")
        prepare(other, tokenizer, threads=threads, report=quiet)
        verify(f"{other.folder}/train")
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")


def test_a_finished_folder_is_recognised_and_another_recipe_refused(recipe, tokenizer):
    assert prepared(recipe, tokenizer) == {}
    made = prepare(recipe, tokenizer, threads=1, report=quiet)
    assert prepared(recipe, tokenizer) == made
    source = dataclasses.replace(recipe.sources[0], minimum_characters=7)
    other = dataclasses.replace(recipe, sources=(source,))
    with pytest.raises(UserError, match=r"sources.0.minimum_characters 1 there, 7 here"):
        prepared(other, tokenizer)


def test_a_folder_of_another_tokenizer_is_refused(recipe, tokenizer, tmp_path, monkeypatch):
    prepare(recipe, tokenizer, threads=1, report=quiet)
    monkeypatch.setattr(tokenizer, "sha256", "f" * 64)
    with pytest.raises(UserError, match=r"was made with tokenizer .* is ffffffffffff"):
        prepared(recipe, tokenizer)


def test_a_disk_without_room_is_refused_before_anything_is_written(recipe, tokenizer, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _: 1_000)
    with pytest.raises(UserError, match=r"needs about [\d,]+ bytes and its disk has 1,000 free"):
        prepare(recipe, tokenizer, threads=1, report=quiet)
    assert not Path(recipe.folder).exists()


def test_a_store_without_a_known_size_is_written_to(recipe, tokenizer, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _: None)
    assert prepare(recipe, tokenizer, threads=1, report=quiet)


def test_a_disk_that_fills_up_is_one_line(recipe, tokenizer, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TokenWriter, "append", full)
    with pytest.raises(UserError, match=r"the disk of '.*out' is full: free some space"):
        prepare(recipe, tokenizer, threads=1, report=quiet)
    assert prepared(recipe, tokenizer) == {}


def test_a_source_without_documents_names_the_first_trouble(recipe, tokenizer, tmp_path):
    (tmp_path / "web.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(UserError, match=r"source 'web' gave no document; .*record 1: has no field"):
        prepare(recipe, tokenizer, threads=1, report=quiet)


def test_a_source_whose_documents_are_all_too_short_says_so(recipe, tokenizer):
    web = dataclasses.replace(recipe.sources[0], minimum_characters=10**9)
    recipe = dataclasses.replace(recipe, sources=(web,))
    with pytest.raises(UserError, match=r"gave no document; \d+ are shorter than its minimum_char"):
        prepare(recipe, tokenizer, threads=1, report=quiet)


def test_unreadable_records_are_reported(recipe, tokenizer, tmp_path):
    with (tmp_path / "web.jsonl").open("a") as file:
        file.write("\n{oops\n")
    lines = []
    prepare(recipe, tokenizer, threads=1, report=lines.append)
    assert "1 unreadable records" in lines[1]
    assert "web.jsonl record 301: " in lines[2]


def test_prepare_trains_a_missing_tokenizer_and_says_what_exists(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_texts(Path("web.jsonl"), 300)
    Path("made.py").write_text(RECIPE)
    arguments = prepare_command.PrepareArguments(recipe="made.py", threads=1, verify=True)
    prepare_command.run(arguments)
    first, made = capsys.readouterr().out, contents(Path("out"))
    assert "out/t.model: learned 520 pieces" in first
    assert "out/train: " in first
    assert "checksums: all equal" in first
    prepare_command.run(arguments)
    again = capsys.readouterr().out
    assert "out was prepared before; to do it again, remove the folder first" in again
    assert contents(Path("out")) == made
    tokenizer_command.run(tokenizer_command.TokenizerArguments(recipe="made.py"))
    assert "exists; to train it anew, remove the file first" in capsys.readouterr().out


def test_the_tokenizer_command_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_texts(Path("web.jsonl"), 300)
    Path("made.py").write_text(RECIPE)
    tokenizer_command.run(tokenizer_command.TokenizerArguments(recipe="made.py"))
    assert "out/t.model: 520 pieces, SHA-256" in capsys.readouterr().out


def test_no_threads_are_refused():
    with pytest.raises(UserError, match="threads is 0: must be at least 1"):
        prepare_command.PrepareArguments(recipe="a.py", threads=0)


def test_prepare_that_is_killed_is_done_again_to_the_same_bytes(tmp_path):
    command = (
        "from gemma_train.commands.prepare import PrepareArguments, run;"
        "run(PrepareArguments(recipe='made.py', threads=1))"
    )
    folders = [tmp_path / "killed", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
        write_texts(folder / "web.jsonl", 12_000)
        (folder / "made.py").write_text(RECIPE)
    environment = {"PYTHONPATH": str(Path(storage.__file__).parents[1]), "PATH": ""}

    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
        )

    killed = start(folders[0])
    shard = folders[0] / "out" / "train" / "tokens-00000.bin"
    while not (shard.exists() and shard.stat().st_size):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folders[0] / "out" / "train" / "dataset.json").exists()

    for process in [start(folder) for folder in folders]:
        assert process.wait() == 0
    assert contents(folders[0]) == contents(folders[1])
