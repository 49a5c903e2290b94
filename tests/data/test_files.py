"""Text of files: byte order marks, other encodings, lines."""

import json

import numpy as np
import pytest

from sedd_fast.cli.requests import from_file
from sedd_fast.cli.samples import read_samples
from sedd_fast.data.basic_tokenizers import MARKER
from sedd_fast.data.copies import named_rows
from sedd_fast.data.files import decode, read_text, split_lines
from sedd_fast.data.sources import HubDataset, read_documents
from sedd_fast.data.tokenizers import ByteTokenizer, load_tokenizer

MARK = "\ufeff".encode()


def documents(path):
    return read_documents([str(path)])


def requests(path):
    return [request.label for request in from_file(str(path), ByteTokenizer(), 8)]


@pytest.mark.parametrize(
    ("read", "content", "expected"),
    [
        (documents, "a \ufefffox", ["a \ufefffox"]),  # elsewhere it is a character
        (requests, '{"prefix": "a", "id": 1}\n', [{"line": 1, "id": 1}]),
        (lambda path: read_samples(path).texts, '{"text": "a"}\n', ["a"]),
        (lambda path: named_rows("ptb", copy=path), "a b\nc\n", ["a b", "c"]),
    ],
)
def test_a_byte_order_mark_is_no_text(read, content, expected, tmp_path):
    path = tmp_path / "marked.txt"
    for mark in (b"", MARK):
        path.write_bytes(mark + content.encode())
        assert read(path) == expected


def test_byte_order_marks_in_a_folder_that_datasets_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(MARK + b"one\xe2\x80\xa8two\nthree\n")
    for streaming in (False, True):
        source = HubDataset(str(folder), streaming=streaming)
        assert list(source.texts(source.load())) == ["one\u2028two", "three"] * 2


@pytest.mark.parametrize("beside", ["info.json", "rows.csv", ".cache/x.json"])
def test_byte_order_marks_beside_files_of_other_kinds(beside, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    (folder / beside).parent.mkdir(parents=True)
    (folder / beside).write_text("{}")
    (folder / "test.txt").write_bytes(MARK + b"one\ntwo\n")
    source = HubDataset(str(folder), split="test")
    assert list(source.texts(source.load())) == ["one", "two"]
    assert named_rows("lm1b", copy=folder) == ["one", "two"]


def test_a_byte_order_mark_before_a_saved_tokenizer(tmp_path):
    ByteTokenizer().save(tmp_path)
    (tmp_path / MARKER).write_bytes(MARK + (tmp_path / MARKER).read_bytes())
    (tmp_path / "tokenizer.sha256").unlink()
    assert load_tokenizer(tmp_path) == ByteTokenizer()


def test_a_saved_tokenizer_has_each_key_once(tmp_path):
    (tmp_path / MARKER).write_text('{"kind": "bytes", "kind": "characters"}')
    with pytest.raises(
        ValueError, match=r"tokenizer: .*sedd_tokenizer.json .*'kind' is there twice"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named_with_the_remedy(encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a fox".encode(encoding))
    with pytest.raises(
        ValueError, match=rf"--from: {path} is not UTF-8.*{encoding[:6].upper()}.*"
    ) as found:
        read_text(path, "--from")
    assert f"iconv -f {encoding.replace('-le', 'le').replace('-be', 'be')} -t utf-8" in str(
        found.value
    )


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text",
    [
        "“A fox” has 5 €.\n" * 9,
        "Привет, мир.\n" * 9,
        "日本語の文。これは狐。\r\n" * 9,
        "\u3000一二三\n" * 9,
        "最一一。",
        "fox",
    ],
)
def test_utf16_without_a_mark_is_known_in_any_script(text, encoding):
    with pytest.raises(ValueError, match=f"looks like UTF-16.*-f {encoding.replace('16-', '16')} "):
        decode(text.encode(encoding), "a.txt")


@pytest.mark.parametrize(
    "content",
    [
        np.arange(500, dtype="<f4").tobytes(), np.arange(500, dtype="<i4").tobytes(),
        np.arange(500, dtype=">i2").tobytes(), b"a fox and\0a dog", bytes(100),
        b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\x3e\0\1\0\0\0\xc0\x10\0\0\0\0",
    ],
)  # fmt: skip
def test_numbers_are_no_text(content):
    with pytest.raises(ValueError, match=r"is not text \(byte \d+ is 0"):
        decode(content, "a.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("“naïve” café, 5 €".encode("cp1252"), r"cp1252.*iconv -f cp1252 -t utf-8 'a b.txt'"),
        (b"caf\xe9 \x81 and more", "Latin-1.*iconv -f latin1"),
        ("Привет, мир".encode("cp1251"), "ENCODING may be cp1251.*iconv -f ENCODING"),
        ("Привет, мир".encode()[:-1], "damaged or cut off.*iconv -f utf-8 -c"),
        (b"a fox\0", "text .byte 5 is 0"),
        (bytes(range(1, 256)), "text .*25 of its first 255 bytes are control characters"),
    ],
)
def test_what_is_not_utf8_is_explained(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"^data: a b.txt is not .*{message}"):
        read_text("a b.txt")


def test_lines_end_at_a_line_feed_and_nowhere_else(tmp_path):
    assert split_lines("") == split_lines("\n")[1:] == []
    assert split_lines("a\u2028b\x85c\u2029d\n\ne") == ["a\u2028b\x85c\u2029d", "", "e"]
    path, text = tmp_path / "copy.txt", "one\u2028two\x85 \x0b\nthree"
    for line_break in ("\n", "\r\n"):
        path.write_bytes(text.replace("\n", line_break).encode())
        assert named_rows("lm1b", copy=path) == ["one\u2028two", "three"]
        assert named_rows("wikitext2", copy=path) == ["one\u2028two\x85 \x0b\n", "three"]
        lines = [json.dumps({"text": each}, ensure_ascii=False) for each in ("a\u2028\x85", "b")]
        path.write_bytes(line_break.join([*lines, ""]).encode())
        assert read_samples(path).texts == ["a\u2028\x85", "b"]
