import pytest
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from gemma_train.errors import UserError
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, place_image_markers, train_tokenizer


def test_training_twice_writes_the_same_bytes(texts, tmp_path):
    files = [epath.Path(tmp_path / name) for name in ("a.model", "b.model")]
    for file in files:
        train_tokenizer(texts, TokenizerConfig(path=str(file), vocabulary=700), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_vocabulary_has_the_size_asked_for_and_gemmas_ids(tokenizer):
    assert tokenizer.vocabulary == 2_100
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2)
    assert tokenizer.id_of("<end_of_turn>") == 106
    assert tokenizer.id_of("<0x00>") == 170  # bytes follow the symbols


def test_many_scripts_do_not_crowd_out_learned_pieces(texts, tmp_path):
    target = epath.Path(tmp_path / "t.model")
    every_ideograph = "".join(map(chr, range(0x4E00, 0x5800)))
    config = TokenizerConfig(path=str(target), vocabulary=700)
    train_tokenizer([every_ideograph, *texts], config, target)
    assert Tokenizer.load(str(target)).decode(Tokenizer.load(str(target)).encode("漢字")) == "漢字"


def test_image_markers_move_to_their_place_in_a_large_vocabulary(tokenizer):
    model = tokenizer._processor.serialized_model_proto()
    moved = sentencepiece_model_pb2.ModelProto.FromString(place_image_markers(model, at=1_000))
    pieces = [piece.piece for piece in moved.pieces]
    assert pieces[1_000:1_002] == ["<start_of_image>", "<end_of_image>"]
    assert pieces[168] == "<0x00>"
    assert len(set(pieces)) == 2_100
    assert place_image_markers(model) == model


def test_training_uses_no_more_bytes_than_allowed(tmp_path):
    def endless():
        while True:
            yield "the quick brown fox jumps over the lazy dog " * 100

    target = epath.Path(tmp_path / "t.model")
    config = TokenizerConfig(path=str(target), vocabulary=512, maximum_training_bytes=100_000)
    with pytest.raises(UserError, match=r"512 cannot be learned from 101,200 .*choose at most \d+"):
        train_tokenizer(endless(), config, target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "there is no text"), ("".join(map(chr, range(0x4E00, 0x9000))), "its characters need")],
)
def test_text_that_cannot_be_learned_from_is_explained(text, message, tmp_path):
    config = TokenizerConfig(path="a", vocabulary=512)
    with pytest.raises(UserError, match=message):
        train_tokenizer([text], config, epath.Path(tmp_path / "t.model"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": ""}, "tokenizer.path is empty"),
        ({"path": "a", "vocabulary": 300}, "tokenizer.vocabulary is 300: choose between 512 and"),
        ({"path": "a", "maximum_training_bytes": 0}, "tokenizer.maximum_training_bytes is 0"),
    ],
)
def test_a_wrong_config_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        TokenizerConfig(**wrong)
