"""Metadata is read by the rules of the imagefolder of ``datasets``; what those would lose is refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from image_files import write_parquet
from PIL import Image

from journey.data.folder import ImageFolder


def make(folder: Path, *images: str, **texts: str) -> Path:
    """Write images, and files whose names have ``__`` for ``/`` and ``_`` for the dot of the suffix."""
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    for name, text in texts.items():
        (folder / ".".join(name.replace("__", "/").rsplit("_", 1))).write_bytes(text.encode())
    return folder


def lines(*records: dict[str, Any]) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def told(folder: Path) -> list[dict[str, Any]]:
    """What a folder tells of its images, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [{key: value for key, value in item.items() if key != "image"} for item in ImageFolder(folder)]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n  \n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_lines_end_at_newlines_alone(end: str, mark: str, tmp_path: Path) -> None:
    caption = "one\u2028two\u2029three\x85four\x0bfive"
    records = [{"file_name": "a.png", "text": caption}, {"file_name": "./b.png", "text": ["x", "y"], "more": 3}]
    text = mark + lines(*records).replace("\n", end or "\n") + end
    make(tmp_path, "a.png", "b.png", metadata_jsonl=text)
    assert told(tmp_path) == [{"text": caption}, {"text": ["x", "y"], "more": 3}]


def test_a_table_tells_the_same_as_lines(tmp_path: Path) -> None:
    table = 'file_name,text,label,more\r\na.png,"a ""red"" apple,\nwith a leaf\u2028",3,x\r\n\r\ns/b.png,12, 4,\r\n'
    make(tmp_path, "a.png", "s/b.png", metadata_csv="\ufeff" + table)
    first = {"text": 'a "red" apple,\nwith a leaf\u2028', "label": 3, "more": "x"}
    assert told(tmp_path) == [first, {"text": "12", "label": 4}]


def test_metadata_of_subfolders_names_files_below_them(tmp_path: Path) -> None:
    make(tmp_path, "r.png", "s/a.png", "s/t/b.png", metadata_jsonl=lines({"file_name": "r.png", "text": "r"}))
    (tmp_path / "s/metadata.jsonl").write_text(
        lines({"file_name": "a.png", "text": "a"}, {"file_name": "t\\b.png", "text": "b"})
    )
    assert told(tmp_path) == [{"text": "r"}, {"text": "a"}, {"text": "b"}]


def test_separators_are_those_of_either_system(tmp_path: Path) -> None:
    records = [{"file_name": name, "text": name} for name in ("s\\a.png", "s/./b.png", "odd\\name.png", "t/../c.png")]
    make(tmp_path, "c.png", "odd\\name.png", "s/a.png", "s/b.png", metadata_jsonl=lines(*records))
    expected = ["t/../c.png", "odd\\name.png", "s\\a.png", "s/./b.png"]
    assert [item["text"] for item in told(tmp_path)] == expected


def test_two_lines_of_one_image_are_refused_with_their_numbers_unless_they_agree(tmp_path: Path) -> None:
    first, other = {"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "y"}
    make(tmp_path, "a.png", "b.png", metadata_jsonl=lines(first, other, {**first, "file_name": "./a.png"}))
    assert told(tmp_path) == [{"text": "x"}, {"text": "y"}]
    make(tmp_path, metadata_jsonl=lines(first, other, {**first, "text": "z"}))
    with pytest.raises(
        ValueError, match=r"line 1 of .*\.jsonl and line 3 of .*\.jsonl tell of the same image a\.png in"
    ):
        ImageFolder(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    make(tmp_path, metadata_csv='file_name,text\na.png,"x\ny"\nb.png,y\na.png,z\n')
    with pytest.raises(ValueError, match=r"line 2 of .*\.csv and line 5 of .*\.csv tell of the same image a\.png"):
        ImageFolder(tmp_path)


def test_two_files_may_not_tell_different_things_of_one_image(tmp_path: Path) -> None:
    make(tmp_path, "s/a.png", metadata_jsonl=lines({"file_name": "s/a.png", "text": "x"}))
    make(tmp_path, s__metadata_jsonl=lines({"file_name": "a.png", "text": "x"}))
    assert told(tmp_path) == [{"text": "x"}]
    make(tmp_path, s__metadata_jsonl="\n" + lines({"file_name": "a.png", "text": "y"}))
    with pytest.raises(
        ValueError, match=r"line 1 of .*metadata\.jsonl and line 2 of .*s/metadata\.jsonl .* s/a\.png in"
    ):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("name", ["../a.png", "..\\a.png", "s/../../a.png", "/a.png", "C:\\x\\a.png", "{root}/a.png"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    data = make(tmp_path / "data", "a.png", "s/b.png")
    make(tmp_path, "a.png")
    make(data, metadata_jsonl=lines({"file_name": name.format(root=data), "text": "x"}))
    with pytest.raises(ValueError, match=r"line 1 of .*metadata\.jsonl must name an image below its own folder, got"):
        ImageFolder(data)


def test_names_of_files_that_are_no_images_are_refused_with_their_lines(tmp_path: Path) -> None:
    records = [{"file_name": name} for name in ("a.png", "z.png", "notes.md", ".b.png")]
    make(tmp_path, "a.png", ".b.png", metadata_jsonl=lines(*records), notes_md="x")
    with pytest.raises(
        ValueError,
        match=r"names 3 images that are not there: z\.png in line 2, notes\.md in line 3 \(hidden, or no image\), \.b",
    ):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata_jsonl", '{"file_name": "a.png", "text": "x", "text": "y"}', r"line 1 .*: a key stands twice among"),
        ("metadata_jsonl", '\n{"file_name": "a.png"', r"line 2 of .* must be a JSON object with file_name"),
        ("metadata_jsonl", '{"file_name": 3}', r"line 1 of .* must be a JSON object with file_name"),
        ("metadata_jsonl", '{"file_name": ["a.png"]}', r"line 1 of .* must be a JSON object with file_name"),
        ("metadata_jsonl", '{"file_name": ""}', r"line 1 of .* must be a JSON object with file_name"),
        ("metadata_jsonl", "[" * 100_000, r"line 1 of .* must be a JSON object with file_name"),
        (
            "metadata_csv",
            "name,text\na.png,x\n",
            r"line 1 of .*csv must name the columns, file_name among them .* name",
        ),
        ("metadata_csv", "file_name;text\na.png;x\n", r"line 1 of .* must name the columns, .* got file_name;text"),
        ("metadata_csv", "file_name,text,text\na.png,x,y\n", r"line 1 of .* must name the columns, .* each once"),
        ("metadata_csv", "file_name,text\n\na.png,x, y\n", r"line 3 of .* must have 2 cells as the first, got 3"),
        ("metadata_csv", "file_name,text\na.png\n", r"line 2 of .* must have 2 cells as the first, got 1"),
        ("metadata_csv", "file_name,text\n,x\n", r"line 2 of .* must have a file_name"),
        ("metadata_csv", 'file_name,text\na.png,"x\nb.png,y\n', r"line 2 of .* is damaged: unexpected end of data"),
        ("metadata_csv", "", r"metadata\.csv must name the columns"),
        ("metadata_parquet", "PAR1", r"metadata\.parquet cannot be read as parquet: .*; write it again"),
    ],
)
def test_damaged_metadata_is_refused_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    make(tmp_path, "a.png", **{name: text})
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_metadata_that_is_not_utf8_is_named(encoding: str, tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    text = '{"file_name": "a.png"}\n{"file_name": "é.png"}'
    (tmp_path / "metadata.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"line \d of .*metadata\.jsonl is not UTF-8 .*; save the file as UTF-8"):
        ImageFolder(tmp_path)


def test_metadata_of_two_kinds_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "s/a.png", metadata_jsonl=lines({"file_name": "s/a.png"}), s__metadata_csv="file_name\na.png\n")
    with pytest.raises(ValueError, match=r"must be of one kind, got metadata\.csv and metadata\.jsonl; keep one"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"metadata_jsonl": lines({"file_name": "a.png", "size": 1})},
            r"2 of 3 images have no line .* \(b\.png, c\.png\)",
        ),
        (
            {"metadata_csv": "file_name,text\na.png,x\nb.png,\nc.png,z\n"},
            r"1 of 3 .* no caption .* \(b\.png\); a model",
        ),
        (
            {"metadata_jsonl": lines(*({"file_name": f"{n}.png", "text": t} for n, t in (("a", "x"), ("b", None))))},
            r"2 of 3 images have no caption in its metadata \(b\.png, c\.png\)",
        ),
        (
            {"metadata_csv": "file_name,label\na.png,1\nb.png,\nc.png,2\n"},
            r"1 of 3 images have no class label .*b\.png",
        ),
    ],
)
def test_images_that_metadata_leaves_out_are_named(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    make(tmp_path, "a.png", "b.png", "c.png", **metadata)
    with pytest.warns(UserWarning, match=message) as warned:
        folder = ImageFolder(tmp_path)
    assert len(warned) == 1
    assert len(folder) == 3, "images keep their ids whatever is told of them"


def test_metadata_may_be_a_parquet_file(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    write_parquet(tmp_path / "metadata.parquet", {"file_name": ["b.png", "a.png"], "text": ["bee", "ape"]})
    assert told(tmp_path) == [{"text": "ape"}, {"text": "bee"}]
    write_parquet(tmp_path / "metadata.parquet", {"file_name": ["a.png", None]})
    with pytest.raises(ValueError, match=r"line 2 of .*metadata\.parquet must have a file_name, got None"):
        ImageFolder(tmp_path)
