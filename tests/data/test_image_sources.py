"""Documents of images and texts: every format is read, and every wrong record named."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from gemma_train.data.document import Document, Skipped
from gemma_train.data.images.decoding import ImageLimits
from gemma_train.data.recipe import ImageTextSource
from gemma_train.data.sources import documents, source_files
from gemma_train.errors import UserError


def picture(seed: int = 0, size: tuple[int, int] = (9, 7)) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def source(*patterns: object, **fields) -> ImageTextSource:
    return ImageTextSource(
        name="photos", files=tuple(map(str, patterns)), licence="CC0-1.0", **fields
    )


def read(chosen: ImageTextSource) -> tuple[list[Document], Skipped]:
    skipped = Skipped()
    return [*documents(chosen, source_files(chosen), skipped)], skipped


def parts(chosen: ImageTextSource) -> list[tuple[str | bytes, ...]]:
    found, skipped = read(chosen)
    assert skipped == Skipped()
    return [document.parts for document in found]


def trouble(chosen: ImageTextSource) -> str:
    """What was said of the one record that is no document."""
    found, skipped = read(chosen)
    assert (found, skipped.malformed + skipped.images) == ([], 1)
    return skipped.examples[0]


def write_tar(file: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def write_jsonl(file: Path, *contents: object) -> Path:
    file.write_text("\n".join(json.dumps({"content": content}) for content in contents))
    return file


# Pairs of files


def test_an_image_file_has_its_caption_beside_it(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    expected = [(picture(number), f"picture {number}") for number in range(2)]
    assert parts(source(tmp_path / "*.png")) == expected
    assert parts(source(tmp_path / "*")) == expected  # captions are none themselves


def test_captions_may_have_another_suffix_and_must_be_there(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    assert trouble(source(tmp_path / "*.png")).endswith(
        "a.png file: has no caption 'a.txt' beside it"
    )
    (tmp_path / "a.caption").write_text("one")
    assert parts(source(tmp_path / "*.png", caption_suffix=".caption")) == [(picture(), "one")]


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(10**12)  # sparse
    chosen = source(tmp_path / "*.png")
    assert "1,000,000,000,000 bytes, at most 100,000,000 are taken" in trouble(chosen)
    with pytest.raises(UserError, match=r"source 'photos': .*a.png file: 1,000,0.*set damaged='c"):
        read(source(tmp_path / "*.png", damaged="refuse"))
    (tmp_path / "a.png").write_bytes(picture())
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(10**12)
    assert "its caption has 1,000,000,000,000 bytes" in trouble(chosen)


def test_a_source_stops_at_its_maximum(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    assert len(parts(source(tmp_path / "*.png", maximum_documents=3))) == 3


# WebDataset archives


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_one_name_are_a_document(tmp_path, mode):
    file = write_tar(
        tmp_path / "a.tar",
        {
            "one.txt": b"first",
            "one.PNG": picture(1),
            "one.cls": b"7",
            "deep/two.v2.png": picture(2),
            "deep/two.json": b'{"text": "second", "id": 2}',
        },
        mode,
    )
    found, skipped = read(source(file, format="webdataset"))
    assert skipped == Skipped()
    assert [document.parts for document in found] == [
        (picture(1), "first"),
        (picture(2), "second"),
    ]
    assert found[1].place == f"{file} record 'deep/two'"


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a.png": link("a.png", "/etc/passwd"), "a.txt": b"x"}, "member 'a.png' is a link or no"),
        ({"a.png": picture(), "a.txt": link("a.txt", "/etc/passwd")}, "member 'a.txt' is a link"),
        ({"a.png": link("a.png", "b.png", tarfile.LNKTYPE), "a.txt": b"x"}, "is a link"),
        ({"a.png": link("a.png", "", tarfile.CHRTYPE), "a.txt": b"x"}, "is a link or no plain"),
        ({"a.png": picture()}, "has no caption: neither a member .txt nor .json"),
        ({"a.txt": b"x"}, "has 0 images among its members, not 1"),
        ({"a.png": picture(), "a.jpg": picture(), "a.txt": b"x"}, "has 2 images"),
        ({"a.png": picture(), "a.json": b"[]"}, "is a list, not an object"),
        ({"a.png": picture(), "a.json": b'{"caption": ""}'}, "has no field 'text', but 'caption'"),
        ({"a.png": picture(), "a.json": b'{"text": 3}'}, "field 'text' is int, not text"),
        ({"a.png": picture(), "a.txt": b"\xff\xfe"}, "can't decode byte"),
    ],
)
def test_a_wrong_sample_is_named_and_nothing_is_followed(tmp_path, members, told):
    file = write_tar(tmp_path / "a.tar", members)
    assert told in trouble(source(file, format="webdataset"))
    assert sorted(os.listdir(tmp_path)) == ["a.tar"]


def test_a_huge_member_is_not_read(tmp_path):
    members = {"a.png": b"\0" * 5_000, "a.txt": b"x", "b.png": picture(), "b.txt": b"y"}
    file = write_tar(tmp_path / "a.tar", members)
    chosen = source(file, format="webdataset", limits=ImageLimits(largest_bytes=4_000))
    found, skipped = read(chosen)
    assert [document.text for document in found] == ["y"]
    assert "member 'a.png' has 5,000 bytes, at most 4,000 are taken" in skipped.examples[0]


def test_a_name_that_leads_out_of_the_archive_is_only_a_name(tmp_path):
    (tmp_path / "in").mkdir()
    members = {"../out.png": picture(), "../out.txt": b"x", "/abs.png": picture(), "/abs.txt": b"y"}
    file = write_tar(tmp_path / "in" / "a.tar", members)
    assert len(parts(source(file, format="webdataset"))) == 2
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["a.tar"]


def test_an_archive_that_breaks_off_gives_what_was_whole_and_is_counted(tmp_path):
    """Cut anywhere, also between members, where tarfile itself would see a proper end."""
    members = {
        f"{n}.{kind}": picture(n) if kind == "png" else b"x"
        for n in range(4)
        for kind in ("png", "txt")
    }
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    end = whole.rindex(b"3.txt") + 1024  # behind the last member
    for cut in [1, 511, *range(512, end, 512), *range(700, end, 700)]:
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        found, skipped = read(source(tmp_path / "a.tar", format="webdataset"))
        assert len(found) <= 4
        assert skipped.malformed >= 1, cut
        assert all(document.images == [picture(n)] for n, document in enumerate(found))


def test_no_damage_to_an_archive_is_more_than_a_count(tmp_path):
    members = {
        f"{n}.{kind}": picture(n) if kind == "png" else b"x"
        for n in range(3)
        for kind in ("png", "txt")
    }
    random = np.random.default_rng(0)
    for mode in ("w", "w:gz", "w:xz"):
        whole = write_tar(tmp_path / "a.tar", members, mode).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), 5):
                damaged[place] = random.integers(256)
            (tmp_path / "a.tar").write_bytes(damaged)
            read(source(tmp_path / "a.tar", format="webdataset"))


def test_a_header_that_claims_to_be_huge_is_refused(tmp_path):
    member = tarfile.TarInfo("long")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    told = trouble(source(tmp_path / "a.tar", format="webdataset"))
    assert "has a header of 8,589,934,592 bytes" in told


def test_what_is_no_archive_is_counted(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"hello" * 999)
    assert "a.tar file: " in trouble(source(tmp_path / "a.tar", format="webdataset"))


# Parquet


def write_parquet(file: Path, **columns) -> Path:
    parquet.write_table(pyarrow.table(columns), file)
    return file


def test_images_are_bytes_or_what_hugging_face_writes(tmp_path):
    images = [picture(1), picture(2)]
    plain = write_parquet(tmp_path / "plain.parquet", image=images, text=["one", "two"])
    struct = [{"bytes": one, "path": "a.png"} for one in images]
    write_parquet(tmp_path / "struct.parquet", image=struct, text=["one", "two"])
    for file in (plain, tmp_path / "struct.parquet"):
        assert parts(source(file, format="parquet")) == [(images[0], "one"), (images[1], "two")]
    write_parquet(tmp_path / "named.parquet", photo=images, label=["one", "two"])
    named = source(
        tmp_path / "named.parquet", format="parquet", image_field="photo", text_field="label"
    )
    assert len(parts(named)) == 2


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": ["x"]}, "file: has no field 'image', but 'text'"),
        ({"image": [picture()]}, "file: has no field 'text', but 'image'"),
        ({"image": [None], "text": ["x"]}, "record 1: field 'image' is NoneType, not the bytes"),
        ({"image": [3], "text": ["x"]}, "record 1: field 'image' is int, not the bytes"),
        ({"image": [[1, 2]], "text": ["x"]}, "record 1: field 'image' is list, not the bytes"),
        ({"image": [{"path": "a.png"}], "text": ["x"]}, "field 'image' is NoneType"),
        ({"image": [picture()], "text": [None]}, "record 1: field 'text' is NoneType, not text"),
        ({"image": [picture()], "text": [7]}, "record 1: field 'text' is int, not text"),
    ],
)
def test_a_wrong_column_or_row_is_named(tmp_path, columns, told):
    file = write_parquet(tmp_path / "a.parquet", **columns)
    assert told in trouble(source(file, format="parquet"))


def test_a_parquet_file_that_is_cut_is_counted(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", image=[picture()], text=["x"])
    file.write_bytes(file.read_bytes()[:-20])
    assert "a.parquet file: " in trouble(source(file, format="parquet"))


# JSONL


def test_texts_and_images_keep_their_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for number in range(2):
        (tmp_path / "deep" / f"{number}.png").write_bytes(picture(number))
    file = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"text": "A:"},
            {"image": "deep/0.png"},
            {"image": "deep/1.png"},
            {"text": "B"},
            {"text": "C"},
            {"text": ""},
        ],
        [{"text": "no image"}],
    )
    found = parts(source(file, format="jsonl"))
    assert found == [("A:", picture(0), picture(1), "BC"), ("no image",)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"image": "../a.png"}], "image '../a.png' is not below"),
        ([{"image": "x/../../a.png"}], "is not below"),
        ([{"image": "/etc/passwd"}], "image '/etc/passwd' is not below"),
        ([{"image": "file:///etc/passwd"}], "is not below"),
        ([{"image": "..\\a.png"}], "is not below"),
        ([{"image": "out/secret.png"}], "image 'out/secret.png' is not below"),  # by a link
        ([{"image": "secret.png"}], "image 'secret.png' is not below"),
        ([{"image": "none.png"}], "image 'none.png' is not there"),
        ([{"image": "pipe"}], "image 'pipe' is not there"),
        ([{"image": ""}], "image '' is not there"),
        ([{"image": "a\0.png"}], "null"),
        ([{"image": 3}], "content[0] is neither {'text': ...} nor {'image': ...}"),
        ([{"text": "x"}, {"video": "x"}], "content[1] is neither"),
        ([{"text": "x", "image": "a.png"}], "content[0] is neither"),
        (["x"], "content[0] is neither"),
        ("x", "field 'content' is str, not a list"),
        ([], "is empty"),
        ([{"text": ""}], "is empty"),
        ([{"text": "\ud800"}], "surrogates not allowed"),
    ],
)
def test_a_wrong_record_is_named_and_no_path_leads_out(tmp_path, content, told):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (folder / "out").symlink_to(tmp_path)
    (folder / "secret.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe")
    file = write_jsonl(folder / "a.jsonl", content)
    said = trouble(source(file, format="jsonl"))
    assert told in said
    assert said.startswith(f"{file} record 1: ")


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', "[" * 100_000, "\xff"])
def test_a_line_that_is_no_record_is_counted(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line)
    assert "a.jsonl record 1: " in trouble(source(tmp_path / "a.jsonl", format="jsonl"))


# Placeholders


@pytest.mark.parametrize("text", ["<start_of_image>", "a <end_of_image>", "<image_soft_token> b"])
def test_a_placeholder_in_a_text_is_refused_by_name(tmp_path, text):
    marker = next(word for word in text.split() if word.startswith("<"))
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "a.txt").write_text(text)
    assert f"its text has '{marker}': an image is given as an image" in trouble(
        source(tmp_path / "*.png")
    )
    halves = [{"text": text[:5]}, {"text": text[5:]}]
    file = write_jsonl(tmp_path / "a.jsonl", halves)
    assert f"its text has '{marker}'" in trouble(source(file, format="jsonl"))
