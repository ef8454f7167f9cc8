import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from gemma_train.data.document import Skipped
from gemma_train.data.recipe import TextSource
from gemma_train.data.sources import documents, estimated_bytes, source_files
from gemma_train.errors import UserError


def source(*patterns, **fields) -> TextSource:
    return TextSource(name="web", files=patterns, licence="CC0-1.0", **fields)


def read(chosen: TextSource) -> tuple[list[str], Skipped]:
    skipped = Skipped()
    found = documents(chosen, source_files(chosen), skipped)
    return [document.text for document in found], skipped


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "b.txt").write_bytes("zwei\r\nΔ".encode())
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "deep").mkdir()
    with gzip.open(tmp_path / "deep" / "c.txt.gz", "wb") as file:
        file.write(b"\xef\xbb\xbfthree")
    found, skipped = read(source(f"{tmp_path}/*.txt", f"{tmp_path}/**/*"))
    assert found == ["one", "zwei\r\nΔ", "three"]
    assert skipped == Skipped()


def test_jsonl_records_are_documents_and_wrong_ones_are_reported_by_number(tmp_path):
    wrong = ['{"text": 3}', "{", "[]", '{"body": "x"}', '{"text": "\\ud800"}', '{"text": null}']
    lines = [json.dumps({"text": "one"}), *wrong, "", json.dumps({"text": "two\n"})]
    file = tmp_path / "web.jsonl"
    file.write_text("\n".join(lines))
    found, skipped = read(source(str(file), format="jsonl"))
    assert found == ["one", "two\n"]
    assert skipped.malformed == 6
    assert skipped.examples[0] == f"{file} record 2: field 'text' is int, not text"
    assert skipped.examples[1].startswith(f"{file} record 3: ")
    assert skipped.examples[2] == f"{file} record 4: is a list, not an object"


def test_parquet_rows_are_documents(tmp_path):
    for number, kind in enumerate((pyarrow.string(), pyarrow.large_string(), pyarrow.binary())):
        values = [text and (text.encode() if number == 2 else text) for text in ("one", None, "Δ")]
        table = pyarrow.table({"id": [1, 2, 3], "body": pyarrow.array(values, kind)})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    found, skipped = read(source(f"{tmp_path}/*.parquet", format="parquet", text_field="body"))
    assert found == ["one", "Δ"] * 3
    assert skipped.examples[0].endswith("0.parquet record 2: field 'body' is NoneType, not text")


def test_a_missing_column_is_reported_with_those_there_are(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    _, skipped = read(source(f"{tmp_path}/*", format="parquet"))
    assert skipped.examples[0].endswith("a.parquet file: has no field 'text', but 'body'")


@pytest.mark.parametrize("format", ["text", "jsonl", "parquet"])
def test_broken_files_are_counted(tmp_path, format):
    (tmp_path / "broken").write_bytes(b"\xff\xfe\x00{")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"some text that is long enough" * 99)[:50])
    found, skipped = read(source(f"{tmp_path}/*", format=format))
    assert (found, skipped.malformed) == ([], 2)


def test_short_documents_are_left_out_and_counted(tmp_path):
    for name in ("", "a", "abc"):
        (tmp_path / f"text{name}").write_text(name)
    found, skipped = read(source(f"{tmp_path}/*", minimum_characters=2))
    assert (found, skipped.short) == (["abc"], 2)


def test_a_source_stops_before_its_maximum(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name * 10)
    chosen = source(f"{tmp_path}/*", maximum_bytes=25)
    assert read(chosen)[0] == ["a" * 10, "b" * 10]
    assert estimated_bytes(chosen, source_files(chosen)) == 25


def test_a_pattern_without_files_is_named(tmp_path):
    with pytest.raises(UserError, match="source 'web': no file matches"):
        source_files(source(f"{tmp_path}/*.txt"))


def test_a_file_that_two_patterns_match_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert len(source_files(source(f"{tmp_path}/*", f"{tmp_path}/a*"))) == 1
