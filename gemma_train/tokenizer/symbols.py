"""Gemma's symbols: the pieces that are given, not learned, at the ids Gemma 3 gives them.

The order of the blocks is the order of the ids, from `<mask>` at 4 (google-deepmind/gemma,
gm/text/_tokenizer.py; the rest by counting); byte pieces and learned pieces follow. A small
vocabulary cannot afford every block:

    vocabulary   512 and up   pad .. end_of_turn, a newline, image markers     ids 0..109
               2,048 and up   and all runs of newlines and spaces              ids 0..169
              32,768 and up   and HTML tags                                    ids 0..217
             256,002 and up   image markers move to 255999 and 256000, as in Gemma 3
"""

PAD, EOS, BOS, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"  # ids 0, 1, 2, 3
MARKERS = (  # ids 4..106
    "<mask>",
    "[multimodal]",
    *(f"<unused{number}>" for number in range(99)),
    "<start_of_turn>",
    "<end_of_turn>",
)
NEWLINES = tuple("\n" * length for length in range(1, 32))  # ids 107..137
SPACES = tuple(
    "\u2581" * length for length in range(2, 32)
)  # ids 138..167, as SentencePiece writes
_TAG_ROWS = (  # ids 168..215: each row is opened, then closed
    "table caption thead tbody tfoot tr th td",
    "h1 h2 h3 h4 h5 h6 blockquote",
    "strong em b i u s sub sup code",
)
HTML_TAGS = tuple(
    f"<{slash}{tag}>" for row in _TAG_ROWS for slash in ("", "/") for tag in row.split()
)
START_OF_IMAGE, END_OF_IMAGE = IMAGE_MARKERS = ("<start_of_image>", "<end_of_image>")
IMAGE_PLACEHOLDERS = (*IMAGE_MARKERS, "<image_soft_token>")  # the last is Hugging Face's, no piece

SMALLEST_VOCABULARY = 512  # the blocks above, 256 bytes and some characters
_RUNS_FROM, _TAGS_FROM = 2_048, 32_768
GEMMA_3_IMAGE_ID = 255_999


def given_symbols(vocabulary: int) -> tuple[str, ...]:
    """The user-defined pieces of a vocabulary of this size, in the order of their ids from 4."""
    newlines = NEWLINES if vocabulary >= _RUNS_FROM else NEWLINES[:1]
    spaces = SPACES if vocabulary >= _RUNS_FROM else ()
    tags = HTML_TAGS if vocabulary >= _TAGS_FROM else ()
    return (*MARKERS, *newlines, *spaces, *tags, *IMAGE_MARKERS)


def is_layout(piece: str) -> bool:
    """Whether a user-defined piece is plain text (a whitespace run, an HTML tag), not a control."""
    return not piece.strip("\n\t\r\u2581 ") or piece in HTML_TAGS
