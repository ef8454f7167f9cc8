import pytest

from gemma_train.tokenizer import symbols


def id_in_gemma(symbol: str, vocabulary: int) -> int:
    return 4 + symbols.given_symbols(vocabulary).index(symbol)


@pytest.mark.parametrize("vocabulary", [512, 4_096, 65_536, 262_144])
def test_the_first_symbols_have_gemma_3s_ids_at_every_vocabulary(vocabulary):
    expected = {"<mask>": 4, "[multimodal]": 5, "<unused0>": 6, "<unused98>": 104}
    expected |= {"<start_of_turn>": 105, "<end_of_turn>": 106, "\n": 107}
    assert {symbol: id_in_gemma(symbol, vocabulary) for symbol in expected} == expected


def test_runs_and_tags_have_gemma_3s_ids_where_the_vocabulary_affords_them():
    assert id_in_gemma("\n" * 31, 4_096) == 137
    assert id_in_gemma("\u2581" * 2, 4_096) == 138
    assert id_in_gemma("\u2581" * 31, 4_096) == 167
    assert id_in_gemma("<table>", 65_536) == 168
    assert len(symbols.HTML_TAGS) == 48


def test_small_vocabularies_go_without_runs_and_tags():
    assert "\n\n" not in symbols.given_symbols(512)
    assert "<table>" not in symbols.given_symbols(4_096)


def test_image_markers_come_after_the_last_block():
    assert id_in_gemma("<start_of_image>", 512) == 108
    assert id_in_gemma("<end_of_image>", 4_096) == 169


def test_layout_is_whitespace_and_tags_but_no_marker():
    assert all(map(symbols.is_layout, ["\n", "\n\n", "\u2581\u2581", "\t\t", "</code>"]))
    assert not any(map(symbols.is_layout, ["<mask>", "<start_of_turn>", "[multimodal]"]))
