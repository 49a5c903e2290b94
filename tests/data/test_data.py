"""Tokenizers, sources, splitting, packing, and the order of the blocks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sedd_fast.data.blocks import BlockOrder, Blocks
from sedd_fast.data.config import DataConfig
from sedd_fast.data.corpus import hold_out, load_corpus, pack
from sedd_fast.data.hub_tokenizers import HubTokenizer, TransformersTokenizer
from sedd_fast.data.sources import (
    held_out_ranges,
    is_hub_name,
    pydoc_text,
    read_documents,
    split_documents,
)
from sedd_fast.data.tokenizers import (
    MARKER,
    ByteTokenizer,
    CharTokenizer,
    load_tokenizer,
    make_tokenizer,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TEXT = "Hello, wörld!\n\tTwo  spaces; 日本 <|endoftext|> end."


def bpe_file(folder):
    """A small byte-level BPE, as the `tokenizers` library writes it."""
    made = HubTokenizer.from_text(["the cat sat on the mat " * 20], 300)
    made.backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def build(kind, folder):
    if kind == "characters":
        return CharTokenizer.from_text([TEXT])
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "tokenizers":
        return HubTokenizer.from_file(bpe_file(folder))
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(bpe_file(folder)), eos_token="<|endoftext|>"
    )
    return TransformersTokenizer(fast)


@pytest.mark.parametrize("kind", ["characters", "bytes", "tokenizers", "transformers"])
def test_tokenizers_round_trip_and_save(kind, tmp_path):
    tokenizer = build(kind, tmp_path)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.encode_corpus([TEXT, ""]) == [ids, []]
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode([tokenizer.eot]) == "<|endoftext|>"
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert type(again) is type(tokenizer)
    assert again.encode(TEXT) == ids
    assert (again.vocab_size, again.eot) == (tokenizer.vocab_size, tokenizer.eot)
    assert again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("kind", ["characters", "bytes", "tokenizers"])
def test_ids_outside_the_vocabulary_are_named(kind, tmp_path):
    tokenizer = build(kind, tmp_path)
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token {bad} lies outside"):
            tokenizer.decode([0, bad])


def test_characters_outside_the_vocabulary():
    tokenizer = CharTokenizer.from_text(["abc"])
    with pytest.raises(ValueError, match=r"no 'é' \(U\+00E9\)"):
        tokenizer.encode("abé")
    assert tokenizer.encode_corpus(["abé"]) == [[0, 1, tokenizer.unk]]
    assert tokenizer.decode([0, tokenizer.unk]) == "a\ufffd"


def test_gpt2_from_vocab_and_merges():
    folder = SHARED / "gpt2-tokenizer"
    if not folder.is_dir():
        pytest.skip("the GPT-2 tokenizer files are not here")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    # Published ids of GPT-2 for these words.
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("<|endoftext|>") == [50256]
    text = "Hi, hi.\n\n don't 日本"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_wrong_tokenizers_are_explained(tmp_path):
    not_one, marked = tmp_path / "other.json", tmp_path / "marked"
    not_one.write_text('{"a": 1}')
    marked.mkdir()
    (marked / MARKER).write_text(json.dumps({"kind": "runes"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.json").write_text("{")
    for source, message in [
        (not_one, "is not a `tokenizers` file"),
        (tmp_path / "torn.json", "not valid JSON"),
        (marked, "kind 'runes'"),
        (tmp_path / "empty", "holds neither"),
        ("missing/tokenizer.json", "no file or directory"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_tokenizer(str(source))
    with pytest.raises(ValueError, match="training text"):
        make_tokenizer("characters")


# Sources


def test_pydoc_is_the_same_every_time():
    assert pydoc_text() == pydoc_text()
    assert len(pydoc_text()) > 300_000
    assert read_documents("pydoc") == [pydoc_text()]


def test_files_lists_and_globs(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"text of {name}")
    assert read_documents(str(tmp_path / "*.txt")) == ["text of a.txt", "text of b.txt"]
    names = [str(tmp_path / "c.md"), str(tmp_path / "b*.txt")]
    assert read_documents(names) == ["text of c.md", "text of b.txt"]


def test_wrong_sources_are_explained(tmp_path):
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin1"))
    for source, message in [
        (str(tmp_path / "none.txt"), "no file .*none.txt.*check the path"),
        (str(tmp_path / "*.nothing"), "no file matches"),
        (str(tmp_path), "is a directory"),
        (str(tmp_path / "latin.txt"), "not UTF-8 .*iconv"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_documents(source)


def test_docstrings_of_the_standard_library():
    documents = read_documents(["docstrings", "pydoc"])
    assert documents[-1] == pydoc_text()
    assert len(documents) > 200
    assert sum(map(len, documents[:-1])) > 1_000_000
    assert not is_hub_name("docstrings")


def test_a_python_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(ValueError, match="no sources of its library; use another Python"):
        read_documents("docstrings")


def test_what_counts_as_a_hub_name(tmp_path):
    (tmp_path / "book").write_text("x")
    local = ["pydoc", str(tmp_path / "book"), "missing.txt", "texts/*", "./x", ["a", "b"]]
    assert not any(is_hub_name(source) for source in local)
    assert all(is_hub_name(name) for name in ("openwebtext", "owner/name", "hf:book.txt"))


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("passages", [1, 3, 7])
def test_passages_of_every_part_are_held_out(fraction, passages):
    documents = ["a" * 40, "b" * 37, "c" * 23]
    whole = "".join(documents)
    ranges = held_out_ranges(100, fraction, passages)
    train, rest = split_documents(documents, ranges)
    assert "".join(rest) == "".join(whole[each.start : each.stop] for each in ranges)
    assert sum(map(len, train)) + sum(map(len, rest)) == 100
    assert sum(map(len, train)) == round(100 * (1 - fraction))
    for number, each in enumerate(ranges if len(ranges) == passages else []):
        assert each.stop == 100 * (number + 1) // passages  # one at the end of each part
    marked = np.zeros(100, bool)
    for each in ranges:
        marked[each.start : each.stop] = True
    assert "".join(train) == "".join(c for c, held in zip(whole, marked, strict=True) if not held)
    with pytest.raises(ValueError, match="held_out"):
        held_out_ranges(100, 1.0, passages)


def test_where_the_held_out_text_is_from():
    text = ["".join(chr(97 + i // 500) for i in range(10_000))]
    spread, end = DataConfig(held_out=0.2), DataConfig(held_out=0.2, held_out_at="end")
    train, rest, where = hold_out(text, spread, length=20)
    assert (len(rest), where) == (
        12,
        "12 passages spread over the text, 20 % of it",
    )  # 160 characters
    assert sorted(set("".join(rest))) == sorted({part[0] for part in rest} | {p[-1] for p in rest})
    assert len(set("".join(rest))) >= 12 > len(set(text[0][-2000:]))
    train, rest, where = hold_out(text, end, length=20)
    assert (train, rest) == ([text[0][:-2000]], [text[0][-2000:]])
    assert where == "the last 20 % of the text"
    assert hold_out(text, spread, length=1000)[1:] == ([text[0][-2000:]], where)  # no room for two


def test_a_vocabulary_learned_from_the_text(tmp_path):
    tokenizer = make_tokenizer("bpe:300", ["the cat and the hat " * 50, "the end"])
    assert tokenizer.vocab_size <= 300
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode(" the cat")) == 2
    assert tokenizer.eot is not None
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    for wrong in ("bpe:", "bpe:256", "bpe:many", "bpe:-1", "bpe:99999999999", "bpe:" + "9" * 5000):
        with pytest.raises(ValueError, match=r"bpe:N with 257 .* to 1048576"):
            make_tokenizer(wrong, ["x"])
    with pytest.raises(ValueError, match="takes its vocabulary from the training text"):
        make_tokenizer("bpe:300")


# Packing and order


def test_packing_puts_end_of_text_after_each_document():
    tokenizer = CharTokenizer.from_text(["abcdef"])
    tokens = pack(["abc", "de"], tokenizer)
    assert tokens.tolist() == [0, 1, 2, 6, 3, 4, 6]
    blocks = Blocks(tokens, length=3)
    assert len(blocks) == 2  # the remainder is dropped
    assert blocks.rows([1, 0]).tolist() == [[6, 3, 4], [0, 1, 2]]
    assert blocks.rows([0]).dtype == torch.int64
    assert blocks.rows([0, 1], offset=1).tolist() == [[1, 2, 6], [3, 4, 6]]


class BrokenTokenizer(ByteTokenizer):
    def encode_corpus(self, texts):
        return [[300] for _ in texts]


def test_packing_checks_the_ids():
    with pytest.raises(ValueError, match=r"id 300 lies outside the vocabulary 0 \.\. 256"):
        pack(["x"], BrokenTokenizer())


def test_text_shorter_than_a_block():
    with pytest.raises(ValueError, match=r"has 5 tokens, fewer than one block of 8"):
        Blocks(np.arange(5), length=8)


@pytest.mark.parametrize("random_offset", [False, True])
def test_an_epoch_has_every_block_once(random_offset):
    order = BlockOrder(Blocks(np.arange(103), length=4), 7, random_offset)
    epochs = [order.take(order.per_epoch).tokens for _ in range(3)]
    for rows in epochs:
        assert torch.equal(rows - rows[:, :1], torch.arange(4).expand_as(rows))
        assert len(set(rows[:, 0].tolist())) == order.per_epoch
    assert not torch.equal(epochs[0], epochs[1])
    offsets = {int(rows[0, 0]) % 4 for rows in epochs}
    assert (len(offsets) > 1) is random_offset


def test_order_depends_on_the_seed():
    first, second = (
        BlockOrder(Blocks(np.arange(400), 4), seed).take(100).tokens for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_processes_share_a_batch_and_resuming_goes_on():
    def order():
        return BlockOrder(Blocks(np.arange(103), length=4), seed=3, random_offset=True)

    whole, shares, late = order(), [order(), order()], order()
    batches = [whole.take(6).tokens for _ in range(9)]  # more than two epochs
    for batch in batches:
        parts = [share.take(6, rank, 2).tokens for rank, share in enumerate(shares)]
        assert torch.equal(torch.cat(parts), batch)
    early = order()
    for _ in range(5):
        early.take(6)
    late.load_state_dict(early.state_dict())
    assert torch.equal(late.take(6).tokens, batches[5])


def test_corpus_of_a_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ab" * 475 + "c" * 50)
    corpus = load_corpus(DataConfig(train=str(path), held_out=0.05), length=10)
    assert corpus.tokenizer.characters == "ab"  # the vocabulary is the training text's
    assert set(corpus.held_out.tokens[:50].tolist()) == {corpus.tokenizer.unk}
    assert len(corpus.train.blocks.tokens) == 951  # and end-of-text
    assert corpus.chars_per_token == pytest.approx(50 / 51)


def test_held_out_file_of_its_own(tmp_path):
    for name, text in (("a.txt", "ab" * 50), ("b.txt", "ba" * 20)):
        (tmp_path / name).write_text(text)
    config = DataConfig(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), tokenizer="bytes")
    corpus = load_corpus(config, length=10)
    assert len(corpus.train.blocks.tokens) == 101
    assert len(corpus.held_out.tokens) == 41


def test_nothing_held_out_and_too_little(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ab" * 50)
    corpus = load_corpus(DataConfig(str(path), held_out=0), length=10)
    assert corpus.held_out is None
    assert corpus.chars_per_token is None
    with pytest.raises(ValueError, match=r"held-out text .* fewer than one block"):
        load_corpus(DataConfig(str(path)), length=10)


def test_fingerprint_covers_every_token():
    tokens = np.zeros(2_100_000, np.uint16)
    whole = Blocks(tokens, 16)
    for place in (0, 999_999, 1_050_000, len(tokens) - 1):
        changed = tokens.copy()
        changed[place] = 7
        assert Blocks(changed, 16).fingerprint != whole.fingerprint
        assert not BlockOrder(whole, 0).has_fingerprint(Blocks(changed, 16).fingerprint)
    assert Blocks(tokens[:-1], 16).fingerprint != whole.fingerprint
    strided = np.zeros((len(tokens), 2), ">u2")[:, 0]
    assert Blocks(strided, 16).fingerprint == whole.fingerprint
    assert BlockOrder(whole, 0).has_fingerprint(whole.fingerprint)


def test_fingerprint_of_an_older_run_is_accepted():
    old = "fd408598f554382f"  # of the numbers 0 to 99
    assert Blocks(np.arange(100, dtype=np.uint16), 16).has_fingerprint(old)
    assert not Blocks(np.arange(1, 101, dtype=np.uint16), 16).has_fingerprint(old)
