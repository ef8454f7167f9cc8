import random

import pytest

from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.data.training_text import is_held_out, recipe_tokenizer, training_texts
from gemma_train.errors import UserError
from gemma_train.tokenizer.training import TokenizerConfig


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    letters, sources = random.Random(0), []
    for name, files in (("big", 300), ("small", 100)):
        (tmp_path / name).mkdir()
        for number in range(files):
            words = ("".join(letters.choices("abcdefghij ", k=7)) for _ in range(80))
            text = f"{name} document {number}: " + " ".join(words)
            (tmp_path / name / f"{number:04d}.txt").write_text(text)
        pattern = f"{tmp_path}/{name}/*.txt"
        sources.append(
            TextSource(name=name, files=(pattern,), licence="CC0-1.0", held_out_fraction=0.2)
        )
    tokenizer = TokenizerConfig(
        path=f"{tmp_path}/t.model", vocabulary=520, maximum_training_bytes=80_000
    )
    return Recipe(name="r", folder=f"{tmp_path}/out", tokenizer=tokenizer, sources=tuple(sources))


def test_the_split_depends_on_the_content_alone(recipe):
    texts = [f"text {number}" for number in range(4_000)]
    chosen = [text for text in texts if is_held_out(text.encode(), recipe.sources[0])]
    assert 700 < len(chosen) < 900
    assert chosen == [text for text in texts if is_held_out(text.encode(), recipe.sources[1])]


def test_every_source_gives_the_tokenizer_its_share(recipe):
    texts = list(training_texts(recipe.sources, 80_000))
    shares = {name: sum(len(t) for t in texts if t.startswith(name)) for name in ("big", "small")}
    assert sum(shares.values()) == pytest.approx(80_000, rel=0.05)
    assert shares["big"] / shares["small"] == pytest.approx(3, rel=0.1)


def test_the_tokenizer_never_learns_from_held_out_text(recipe):
    assert not any(
        is_held_out(text.encode(), recipe.sources[0])
        for text in training_texts(recipe.sources, 80_000)
    )


def test_a_part_of_a_source_is_taken_from_everywhere_in_it(recipe):
    numbers = [
        int(text.split()[2][:-1])
        for text in training_texts(recipe.sources, 80_000)
        if text[0] == "b"
    ]
    assert max(numbers) > 250
    assert numbers != sorted(numbers)


def test_a_tokenizer_is_trained_once(recipe):
    first, trained = recipe_tokenizer(recipe)
    again, trained_again = recipe_tokenizer(recipe)
    assert (trained, trained_again) == (True, False)
    assert first.sha256 == again.sha256


def test_a_tokenizer_of_another_size_is_refused(recipe, tmp_path):
    recipe_tokenizer(recipe)
    larger = TokenizerConfig(path=f"{tmp_path}/t.model", vocabulary=600)
    other = Recipe(name="r", folder="out", tokenizer=larger, sources=recipe.sources)
    with pytest.raises(UserError, match="has 520 pieces, recipe 'r' asks for 600: remove the file"):
        recipe_tokenizer(other)


def test_a_named_tokenizer_must_exist(recipe):
    other = Recipe(name="r", folder="out", tokenizer="none.model", sources=recipe.sources)
    with pytest.raises(UserError, match=r"tokenizer 'none.model' does not exist"):
        recipe_tokenizer(other)
