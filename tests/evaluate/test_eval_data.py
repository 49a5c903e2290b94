"""Named data sets and the wrapping of texts into blocks, from copies on disk."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch

from sedd_fast.data import datasets as named_data
from sedd_fast.data import sources
from sedd_fast.data.blocks import Blocks
from sedd_fast.data.copies import named_rows
from sedd_fast.data.datasets import NAMED
from sedd_fast.data.tokenizers import ByteTokenizer
from sedd_fast.evaluate.wrapping import WRAPS, Wrapped, wrap

EOT = ByteTokenizer().eot


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_every_entry_is_named_in_one_table():
    assert set(NAMED) == {
        "wikitext2", "wikitext103", "ptb", "lm1b", "lambada", "text8", "openwebtext",
    }  # fmt: skip
    for entry in NAMED.values():
        assert entry.path
        assert entry.evaluated


def test_saved_data_set_is_detokenised(tmp_path):
    rows = datasets.Dataset.from_dict({"sentence": ["it 's N % of <unk>", "he does n't"]})
    rows.save_to_disk(tmp_path / "one")
    assert named_rows("ptb", copy=tmp_path / "one") == ["it's 1 % of ?", "he doesn't"]
    both = datasets.DatasetDict({"validation": rows, "test": rows.select([1])})
    both.save_to_disk(tmp_path / "both")
    assert len(named_rows("ptb", copy=tmp_path / "both")) == 2
    assert named_rows("ptb", "test", tmp_path / "both") == ["he doesn't"]
    assert named_rows("ptb", "validation[-1:]", tmp_path / "both") == ["he doesn't"]
    with pytest.raises(ValueError, match=r"has the splits validation, test, not 'train'"):
        named_rows("ptb", "train", tmp_path / "both")
    with pytest.raises(ValueError, match="no column 'text'; its columns are sentence"):
        named_rows("lm1b", copy=tmp_path / "one")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "directory"])
def test_files_that_datasets_reads(kind, tmp_path):
    texts = ["the end . “ yes ”", "a , b"]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path)
    elif kind == "csv":
        datasets.Dataset.from_dict({"text": texts}).to_csv(path)
    else:
        path = tmp_path / "rows" if kind == "directory" else path
        file = path / "test.jsonl" if kind == "directory" else path
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert named_rows("lambada", copy=path) == ['\nthe end . " yes "', "\na , b"]


def test_plain_text_falls_into_the_rows_of_the_hub(tmp_path):
    path = tmp_path / "copy.txt"
    path.write_text(" \n = Title = \n \n Some text , here . \n")
    assert named_rows("wikitext2", copy=path) == ["", " = Title =\n", "", " Some text, here.\n"]
    path.write_text("he is n't N <eos>\nso <eos>\n")
    assert named_rows("ptb", copy=path) == ["he isn't N", "so"]
    path.write_text("one . \ntwo , 2\n")
    assert named_rows("lm1b", copy=path) == ["one .", "two, 2"]
    path.write_text("a\n\nb")
    assert named_rows("openwebtext", copy=path) == ["a\n\nb"]


def test_training_reads_named_data_detokenised(tmp_path, monkeypatch):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "validation.jsonl").write_text(json.dumps({"sentence": "do n't"}) + "\n")
    local = named_data.NamedData(
        str(rows), "validation", column="sentence", detokenizer=NAMED["ptb"].detokenizer
    )
    monkeypatch.setattr(sources, "NAMED", {"ptb": local})
    source = sources.HubDataset("ptb", split="validation")
    assert list(source.texts(source.load())) == ["don't"]
    plain = sources.HubDataset(str(rows), split="validation", column="sentence")
    assert list(plain.texts(plain.load())) == ["do n't"]
    assert source.treatment != plain.treatment


def test_errors_name_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected one of wikitext2, wikitext103"):
        named_rows("c4")
    with pytest.raises(ValueError, match="no file"):
        named_rows("ptb", copy=tmp_path / "none.txt")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"--data: .*bad.parquet could not be read"):
        named_rows("ptb", copy=tmp_path / "bad.parquet")

    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"Couldn't reach the Hub.*give a copy of ptb with --data"):
        named_rows("ptb")


# Wrapping


def test_sedd_wrapping_joins_rows():
    wrapped = wrap(["abcd", "", "ef"], ByteTokenizer(), 4)
    (blocks,) = wrapped.blocks()
    assert blocks.tolist() == [[97, 98, 99, 100], [EOT, EOT, 101, 102]]
    assert (wrapped.left_over, wrapped.block_length, len(wrapped)) == (1, 4, 2)
    assert wrapped.chars_per_token == pytest.approx(6 / 9)


def test_mdlm_wrapping_puts_end_of_text_around():
    wrapped = wrap(["abcd", "ef"], ByteTokenizer(), 5, "mdlm")
    (blocks,) = wrapped.blocks()
    assert blocks.tolist() == [[EOT, 97, 98, 99, EOT], [EOT, 100, EOT, 101, EOT]]
    assert (wrapped.left_over, wrapped.block_length) == (2, 5)
    assert wrapped.chars_per_token == pytest.approx(6 / (8 * 5 / 3))


def test_separate_rows_are_left_whole():
    wrapped = wrap(["abcdefg", "", "hi", "jk"], ByteTokenizer(), 4, "separate")
    by_length = {blocks.shape[1]: blocks.tolist() for blocks in wrapped.blocks()}
    assert by_length == {
        1: [[EOT]],
        3: [[104, 105, EOT], [106, 107, EOT]],
        4: [[97, 98, 99, 100], [101, 102, 103, EOT]],
    }
    assert wrapped.left_over == 0


def test_a_few_blocks_stand_evenly_spaced_over_the_text():
    text = "".join(map(chr, range(32, 126)))  # 94 characters and end-of-text: 31 blocks of 3
    (chosen,) = wrap([text], ByteTokenizer(), 3).blocks(4)
    assert chosen[:, 0].tolist() == [32 + 3 * number for number in (0, 10, 20, 30)]


@pytest.mark.parametrize("how", WRAPS)
def test_as_many_blocks_as_asked_for(how):
    wrapped = wrap(["ab"] * 50, ByteTokenizer(), 6, how)
    chosen = wrapped.blocks(5)
    assert sum(len(blocks) for blocks in chosen) == 5
    every = torch.cat([blocks for blocks in wrapped.blocks() if blocks.shape[1] == 6] or chosen)
    assert all(row in every.tolist() for row in chosen[-1].tolist())


def test_short_text_is_one_short_block():
    assert [b.shape for b in wrap(["ab"], ByteTokenizer(), 100).blocks()] == [(1, 3)]
    assert [b.shape for b in wrap(["ab"], ByteTokenizer(), 100, "mdlm").blocks()] == [(1, 5)]


def test_blocks_of_a_run():
    blocks = Blocks(np.arange(7, dtype=np.uint16), 3)
    wrapped = Wrapped.of_blocks(blocks, 1.5, "held out")
    assert wrapped.blocks()[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert wrapped.left_over == 1


def test_wrapping_refuses():
    with pytest.raises(ValueError, match="wrap must be one of sedd, mdlm, separate"):
        wrap(["a"], ByteTokenizer(), 4, "padded")
    with pytest.raises(ValueError, match="end-of-text at both ends"):
        wrap(["a"], ByteTokenizer(), 2, "mdlm")
    with pytest.raises(ValueError, match="empty: it holds no text"):
        wrap(["", ""], ByteTokenizer(), 4, name="empty")
