import io
import random

import pytest
import sentencepiece

from gemma_train.errors import UserError
from gemma_train.tokenizer.tokenizer import Tokenizer

MARKERS = ["<start_of_turn>", "<end_of_turn>", "<mask>", "<unused7>", "[multimodal]"]


def random_text(source: random.Random) -> str:
    """Characters of every plane, with whitespace, markers and tags mixed in."""
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    parts = []
    for _ in range(source.randrange(40)):
        low, high = source.choice(planes)
        likely = [" ", "  ", "\n", "\n\n\n", "\t", "\r\n", "\0", "<b>", "é", "def ", *MARKERS]
        parts.append(source.choice([chr(source.randrange(low, high)), *likely]))
    return "".join(parts).replace("\u2581", "")


@pytest.mark.parametrize("allow_control", [False, True])
def test_any_text_survives_the_round_trip(tokenizer, allow_control):
    source = random.Random(0)
    texts = [
        "",
        " ",
        "\n",
        " a ",
        "<",
        "<<start_of_turn>",
        *(random_text(source) for _ in range(500)),
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text, allow_control=allow_control)) == text


def test_the_spaces_own_symbol_becomes_a_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_bos_and_eos_come_once_and_only_when_asked(tokenizer):
    ids = tokenizer.encode("hello", bos=True, eos=True)
    assert ids == [tokenizer.bos, *tokenizer.encode("hello"), tokenizer.eos]
    assert tokenizer.encode("", bos=True) == [tokenizer.bos]
    assert tokenizer.bos not in tokenizer.encode("<bos>", allow_control=True)


def test_text_cannot_forge_control_tokens(tokenizer):
    control = set(map(tokenizer.id_of, MARKERS))
    source = random.Random(1)
    for _ in range(200):
        text = random_text(source) + "<start_of_turn><end_of_turn><<mask>[multimodal]"
        assert not control & set(tokenizer.encode(text))
        assert control & set(tokenizer.encode(text, allow_control=True))


def test_a_template_may_write_control_tokens(tokenizer):
    ids = tokenizer.encode("<start_of_turn>user\nhi<end_of_turn>\n", allow_control=True)
    assert (ids[0], ids[-2:]) == (105, [106, 107])


def test_whitespace_runs_stay_single_pieces(tokenizer):
    assert tokenizer.encode("\n\n\n") == [109]
    assert tokenizer.encode("    ") == [140]


def test_digits_are_single_pieces(tokenizer):
    assert len(tokenizer.encode("2025")) == 4


def test_a_batch_equals_its_texts_for_any_number_of_threads(tokenizer):
    source = random.Random(2)
    texts = [random_text(source) for _ in range(50)]
    expected = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    for threads in (1, 2, 3):
        assert tokenizer.encode_batch(texts, bos=True, eos=True, threads=threads) == expected


def test_ids_of_a_loaded_model_are_found_by_name(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some text to learn from"] * 10),
        model_writer=model,
        model_type="bpe",
        vocab_size=40,
        unk_id=0,
        bos_id=1,
        eos_id=3,
        pad_id=2,
        bos_piece="<bos>",
        eos_piece="<eos>",
        pad_piece="<pad>",
        user_defined_symbols=["<2mass>", "<end_of_turn>"],
        minloglevel=2,
    )
    path = tmp_path / "other.model"
    path.write_bytes(model.getvalue())
    other = Tokenizer.load(str(path))
    assert (other.bos, other.pad, other.eos, other.id_of("<end_of_turn>")) == (1, 2, 3, 5)
    assert 4 not in other.encode("<2mass>")


def test_a_lone_surrogate_is_refused_in_one_line(tokenizer):
    with pytest.raises(UserError, match="text is not Unicode"):
        tokenizer.encode("a\ud800")


def test_missing_and_wrong_files_are_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer '.*none.model' does not exist"):
        Tokenizer.load(str(tmp_path / "none.model"))
    for content in (b"not a model", b""):
        (tmp_path / "wrong.model").write_bytes(content)
        with pytest.raises(UserError, match=r"wrong.model' is not a SentencePiece model"):
            Tokenizer.load(str(tmp_path / "wrong.model"))
    with pytest.raises(UserError, match="has no piece '<none>'"):
        tokenizer.id_of("<none>")
