"""The tokenizer beside exported weights: a source's own files, or files made for transformers."""

import json
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from etils import epath

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import open_weights
from gemma_train.conversion.tokenizer_files import PROCESSOR_FILES
from gemma_train.errors import UserError
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer
from tests.conversion.vision_folders import VISION, hugging_face_folder

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "gemma1_mha"
OWN = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A tokenizer with runs of newlines and spaces."""
    path = str(tmp_path_factory.mktemp("tokenizer") / "small.model")
    library = Path(sysconfig.get_path("stdlib"))
    texts = [file.read_text("utf-8") for file in sorted((library / "asyncio").glob("*.py"))]
    train_tokenizer(texts, TokenizerConfig(path=path, vocabulary=2_100), epath.Path(path))
    return Tokenizer.load(path)


@pytest.fixture
def source(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "source"))


def exported(source: Path, target: Path, tokenizer: str | None = None) -> Path:
    weights = open_weights(str(source))
    convert_weights(replace(weights, tokenizer=tokenizer or weights.tokenizer), str(target), "hf")
    return target


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_hugging_face_folders_own_files_are_copied_byte_for_byte(source, tmp_path, tokenizer):
    (source / "tokenizer.model").write_bytes(tokenizer.model)
    for name in OWN:
        (source / name).write_text(f'{{"eos_token_id": [1, 106], "of": "{name}"}} \n\n')
    (source / "README.md").write_text("nothing to convert")
    target = exported(source, tmp_path / "target")
    for name in (*OWN, "tokenizer.model"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert not (target / "README.md").exists()


def test_without_a_tokenizer_there_are_gemmas_ids_alone(source, tmp_path):
    target = exported(source, tmp_path / "target")
    assert names(target) == {"config.json", "generation_config.json", "model.safetensors"}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    assert read(target / "generation_config.json") == ids
    assert {key: read(target / "config.json")[key] for key in ids} == ids


def test_a_runs_tokenizer_gets_the_config_that_transformers_needs(source, tmp_path, tokenizer):
    (source / "tokenizer.model").write_bytes(tokenizer.model)
    convert_weights(open_weights(str(source)), str(tmp_path / "run"), "run")
    shutil.rmtree(source)
    target = exported(tmp_path / "run", tmp_path / "target")
    assert (target / "tokenizer.model").read_bytes() == tokenizer.model
    config = read(target / "tokenizer_config.json")
    added = config.pop("added_tokens_decoder")
    assert config == {
        "tokenizer_class": "GemmaTokenizer",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    ids = {piece["content"]: int(index) for index, piece in added.items()}
    assert [ids[name] for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")] == [*range(5)]
    assert ids == {piece: tokenizer.id_of(piece) for piece in ids}
    # 4 to 169: markers, 31 runs of newlines, 30 of spaces, the markers of images.
    assert set(ids.values()) == set(range(170))
    special = {name for name, index in ids.items() if added[str(index)]["special"]}
    assert special == {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}
    # Text has spaces where these pieces have U+2581: they are found once it is normalised.
    normalized = {name for name, index in ids.items() if added[str(index)]["normalized"]}
    assert normalized == {"\u2581" * length for length in range(2, 32)}


@pytest.mark.parametrize("own", [True, False])
def test_another_tokenizer_replaces_the_sources(source, tmp_path, tokenizer, own):
    if own:
        for name in (*OWN, "tokenizer.model"):
            (source / name).write_text('{"of": "the source"}')
    (tmp_path / "small.model").write_bytes(tokenizer.model)
    target = exported(source, tmp_path / "target", str(tmp_path / "small.model"))
    assert (target / "tokenizer.model").read_bytes() == tokenizer.model
    assert names(target) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert read(target / "tokenizer_config.json")["tokenizer_class"] == "GemmaTokenizer"
    assert read(target / "generation_config.json")["eos_token_id"] == 1


def test_a_source_with_a_bare_model_file_gets_the_config_as_well(source, tmp_path, tokenizer):
    (source / "tokenizer.model").write_bytes(tokenizer.model)
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 106]}')
    target = exported(source, tmp_path / "target")
    assert read(target / "tokenizer_config.json")["bos_token"] == "<bos>"
    assert read(target / "generation_config.json") == {"eos_token_id": [1, 106]}


def test_a_tokenizer_that_is_none_is_refused_and_nothing_is_written(source, tmp_path):
    (source / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match=r"tokenizer\.model' is not a SentencePiece model"):
        exported(source, tmp_path / "target")
    assert names(tmp_path) == {"source"}


def test_a_model_that_sees_images_gets_their_tokens_and_a_processor(tmp_path, tokenizer):
    source = Path(hugging_face_folder(tmp_path / "source"))
    (source / "tokenizer.model").write_bytes(tokenizer.model)
    target = exported(source, tmp_path / "target")
    config = read(target / "tokenizer_config.json")
    given = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    assert {key: config[key] for key in given} == config["extra_special_tokens"] == given
    soft = config["added_tokens_decoder"][str(tokenizer.vocabulary)]
    assert soft["content"] == given["image_token"] and soft["special"]
    markers = [tokenizer.id_of(given[key]) for key in ("boi_token", "eoi_token")]
    assert all(config["added_tokens_decoder"][str(index)]["special"] for index in markers)
    keys = read(target / "config.json")
    ids = [keys[f"{name}_token_index"] for name in ("boi", "eoi", "image")]
    assert ids == [*markers, tokenizer.vocabulary]
    pixels = read(target / "preprocessor_config.json")
    assert (pixels["size"], pixels["image_mean"]) == ({"height": 12, "width": 12}, [0.5] * 3)
    assert read(target / "processor_config.json")["image_seq_length"] == VISION.tokens


def test_a_sources_own_processor_is_copied_but_not_for_the_text_alone(tmp_path):
    source = Path(hugging_face_folder(tmp_path / "source"))
    for name in PROCESSOR_FILES:
        (source / name).write_text('{"of": "the source"}')
    target = exported(source, tmp_path / "target")
    assert {read(target / name)["of"] for name in PROCESSOR_FILES} == {"the source"}
    text = open_weights(str(source)).text_alone()
    convert_weights(text, str(tmp_path / "text"), "hf")
    assert names(tmp_path / "text") == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_a_tokenizer_without_markers_of_images_is_refused(tmp_path):
    source = Path(hugging_face_folder(tmp_path / "source"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words of no use", "and some more"]),
        model_prefix=str(source / "tokenizer"),
        vocab_size=17,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<eos>",
    )
    with pytest.raises(UserError, match="has no piece '<start_of_image>': not a Gemma tokenizer"):
        exported(source, tmp_path / "target")
