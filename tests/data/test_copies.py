"""Named data sets, from copies on disk: the hub is not asked."""

import json

import datasets
import pytest

from sedd_fast.data import datasets as named_data
from sedd_fast.data import sources
from sedd_fast.data.copies import named_rows
from sedd_fast.data.datasets import NAMED
from sedd_fast.files import hub


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
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"--data: .*empty.jsonl could not be read .*no rows"):
        named_rows("ptb", copy=tmp_path / "empty.jsonl")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"--data: .*bad.parquet could not be read"):
        named_rows("ptb", copy=tmp_path / "bad.parquet")

    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(hub, "unreachable", lambda endpoint: None)
    with pytest.raises(ValueError, match=r"Couldn't reach the Hub.*give a copy of ptb with --data"):
        named_rows("ptb")
