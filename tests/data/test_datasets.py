"""Hugging Face data sets from a local directory: the Hub is not asked."""

import errno
import json
import resource
import signal

import numpy as np
import pytest
import torch

from sedd_fast.data.blocks import StreamOrder
from sedd_fast.data.config import DataConfig
from sedd_fast.data.corpus import cached_tokens, load_corpus, pack
from sedd_fast.data.sources import HubDataset
from sedd_fast.data.tokenizers import ByteTokenizer


@pytest.fixture
def rows(tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    lines = [json.dumps({"text": f"row {i} " + "x" * (i % 7), "n": i}) for i in range(60)]
    (folder / "train.jsonl").write_text("\n".join(lines[:50]))
    (folder / "validation.jsonl").write_text("\n".join(lines[50:]))
    return folder


def hub_config(rows, tmp_path, **more):
    cache = str(tmp_path / "cache")
    return DataConfig(f"hf:{rows}", tokenizer="bytes", cache_dir=cache, shuffle_buffer=8, **more)


def expected_tokens(numbers):
    text = [f"row {i} " + "x" * (i % 7) for i in numbers]
    return pack(text, ByteTokenizer()).tolist()


def test_data_set_is_packed_once_and_mapped(rows, tmp_path):
    config = hub_config(rows, tmp_path, held_out=0.2)
    corpus = load_corpus(config, length=16)
    assert corpus.train.blocks.tokens.tolist() == expected_tokens(i for i in range(50) if i % 5 < 4)
    assert corpus.held_out.tokens.tolist() == expected_tokens(range(4, 50, 5))
    assert corpus.held_out_source == "10 passages spread over the text, 20 % of it"
    files = sorted((tmp_path / "cache").glob("*.npy"))
    written = files[0].stat().st_mtime_ns
    again = load_corpus(config, length=16)
    assert isinstance(again.train.blocks.tokens, np.memmap)
    assert files[0].stat().st_mtime_ns == written
    assert len(files) == 1


def test_the_last_rows_are_held_out(rows, tmp_path):
    corpus = load_corpus(hub_config(rows, tmp_path, held_out=0.2, held_out_at="end"), length=16)
    assert corpus.train.blocks.tokens.tolist() == expected_tokens(range(40))
    assert corpus.held_out.tokens.tolist() == expected_tokens(range(40, 50))
    assert corpus.held_out_source == "the last 20 % of the text"


def test_a_damaged_cache_of_tokens_is_written_again(rows, tmp_path, caplog):
    config = hub_config(rows, tmp_path, held_out=0.2, held_out_at="end")
    load_corpus(config, length=16)
    [tokens], [described] = (list((tmp_path / "cache").glob(f"*.{e}")) for e in ("npy", "json"))
    whole = tokens.read_bytes(), described.read_bytes()
    key = whole[1].index(b"fingerprint")
    flips = [(tokens, at) for at in (0, 60, 128, -1)] + [(described, at) for at in (0, key, -4)]
    for file, at in flips:
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)
        caplog.clear()
        corpus = load_corpus(config, length=16)
        assert corpus.train.blocks.tokens.tolist() == expected_tokens(range(40))
        assert f"{tokens} is damaged" in caplog.text
        assert (tokens.read_bytes(), described.read_bytes()) == whole
    for missing in (tokens, described):
        missing.unlink()
        assert load_corpus(config, length=16).train.blocks.tokens[0] == ord("r")
        assert (tokens.read_bytes(), described.read_bytes()) == whole


def test_a_full_disk_for_the_cache_of_tokens_is_known(rows, tmp_path):
    """numpy's own error has no number: 20001 requested and 5000 written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source = HubDataset(str(rows))
    (rows / "train.jsonl").write_text(json.dumps({"text": "x" * 20_000, "n": 1}) + "\n")
    loaded = source.load()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(OSError, match="No space left") as caught:
            cached_tokens(loaded, source, ByteTokenizer(), str(tmp_path / "cache"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "cache") in caught.value.filename
    assert list((tmp_path / "cache").iterdir()) == []


def test_data_set_with_a_validation_split(rows, tmp_path):
    corpus = load_corpus(hub_config(rows, tmp_path, valid_split="validation"), length=16)
    assert corpus.train.blocks.tokens.tolist() == expected_tokens(range(50))
    assert corpus.held_out.tokens.tolist() == expected_tokens(range(50, 60))


def test_stream_resumes_and_is_shared(rows, tmp_path):
    def stream():
        config = hub_config(rows, tmp_path, streaming=True, stream_held_out=5)
        return load_corpus(config, length=16)

    corpus = stream()
    assert corpus.held_out.tokens.tolist() == expected_tokens(range(5))
    batches = [corpus.train.take(4).tokens for _ in range(15)]  # more than one pass
    assert corpus.train.epoch > 0
    for stop in (3, 11):
        half = stream().train
        for _ in range(stop):
            half.take(4, 1, 2)
        late = stream().train
        late.load_state_dict(json.loads(json.dumps(half.state_dict())))
        assert torch.equal(late.take(4).tokens, batches[stop])


def test_stream_whose_passes_end_with_a_batch(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": "abc"}) for _ in range(4)))
    stream = StreamOrder(HubDataset(str(tmp_path), streaming=True), ByteTokenizer(), 4, 0, buffer=0)
    first = stream.take(4).tokens  # the whole data set, no token left over
    assert torch.equal(stream.take(4).tokens, first)
    (tmp_path / "train.jsonl").write_text('{"text": ""}')
    empty = StreamOrder(HubDataset(str(tmp_path), streaming=True), ByteTokenizer(eot=None), 4, 0)
    with pytest.raises(ValueError, match="has no text to train on"):
        empty.take(1)


@pytest.mark.parametrize("buffer", [0, 3])
def test_stream_resumes_at_every_batch_however_rows_and_batches_meet(buffer, monkeypatch):
    datasets = pytest.importorskip("datasets")
    texts = ["abc", None, "de", "", "abcdefg", None, "h", "ij"]  # 21 tokens, end-of-text included
    tokens = pack([text for text in texts if text is not None], ByteTokenizer())
    rows = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()
    source = HubDataset("rows", streaming=True)
    monkeypatch.setattr(HubDataset, "load", lambda self: rows)

    def stream(length):
        return StreamOrder(source, ByteTokenizer(), length, 0, buffer=buffer)

    for length in (1, 3, 5, 7, 21, 30):  # a pass ends after, before or exactly at a batch
        order, states, batches = stream(length), [], []
        for _ in range(2 * 21 // length + 2):  # more than two passes
            states.append(json.loads(json.dumps(order.state_dict())))
            batches.append(order.take(1).tokens)
        first = torch.cat(batches).flatten()[: len(tokens)]
        assert sorted(first.tolist()) == sorted(tokens.tolist())
        late = stream(length)
        for at in range(0, len(states), 5 if length == 1 else 1):
            late.load_state_dict(states[at])
            assert all(torch.equal(late.take(1).tokens, batch) for batch in batches[at : at + 3])


@pytest.mark.parametrize("options", [{}, {"tokenizer": "characters"}, {"streaming": True}])
def test_rows_without_text_are_passed_over_and_others_named(options, tmp_path):
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "train.jsonl"
    given = {"tokenizer": "bytes", "stream_held_out": 4} | options
    config = DataConfig(f"hf:{tmp_path}/set", cache_dir=str(tmp_path / "c"), **given)
    file.write_text('{"text": "abcdefg"}\n{"text": null}\n' * 60)
    corpus = load_corpus(config, 8)
    assert (
        corpus.tokenizer.decode(corpus.train.take(2).tokens[1].tolist()) == "abcdefg<|endoftext|>"
    )
    for value in (3, ["a"], {"a": 1}, 0.5):
        file.write_text(json.dumps({"text": None}) + "\n" + json.dumps({"text": value}) + "\n")
        wrong = r"row [01] of the data set .* in column 'text', not text: .*choose"
        with pytest.raises(ValueError, match=wrong):
            load_corpus(config, 8).train.take(2)


def test_a_text_of_which_a_tokenizer_makes_nothing(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "words.json"))
    for name, text in (("a.txt", "a " * 50), ("blank.txt", "  \n ")):
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in ("a.txt", "blank.txt")]
    with pytest.raises(ValueError, match=r"the held-out text .* has 0 tokens"):
        load_corpus(DataConfig(*paths, tokenizer=str(tmp_path / "words.json")), 8)


def test_wrong_data_sets_are_explained(rows, tmp_path):
    with pytest.raises(ValueError, match="no column 'body'; its columns are text, n"):
        HubDataset(str(rows), column="body").load()
    with pytest.raises(ValueError, match=r"split 'nope'.*check the name"):
        HubDataset(str(rows), split="nope").load()
    config = DataConfig(f"hf:{rows}", streaming=True)
    with pytest.raises(ValueError, match="'characters' takes its vocabulary"):
        load_corpus(config, length=16)
