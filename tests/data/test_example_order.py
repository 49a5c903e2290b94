"""The order of examples, their packing, and corpora of them."""

import itertools
import json

import numpy as np
import pytest
import torch

from sedd_fast.data.completions import CompletionLengths
from sedd_fast.data.config import DataConfig
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.example_order import ExampleOrder, pack_rows
from sedd_fast.data.examples import Example, Examples
from sedd_fast.training.config import load_config

LENGTH, COUNT, END = 20, 37, 99


def examples(length=LENGTH):
    """37 examples of 2 to 10 tokens; the first token of each is its number."""
    sizes = np.random.default_rng(0).integers(1, 10, COUNT).tolist()
    return Examples(
        (Example([n], [50] * size, size, f"x, line {n}") for n, size in enumerate(sizes)),
        length, 1, END,
    )  # fmt: skip


def order(packing, seed=3, **options):
    return ExampleOrder(examples(**options), seed, packing)


def documents(batch):
    """The numbers of the examples in each row."""
    first = torch.nn.functional.pad(batch.attention_mask, (1, 0)).diff(dim=1) > 0
    return [row[mask].tolist() for row, mask in zip(batch.tokens, first, strict=True)]


def epoch(reader):
    """The rows of the next epoch, one batch each."""
    number, rows = reader.epoch, []
    while reader.epoch == number:
        rows.append(reader.take(1))
    return rows


def same(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("tokens", "loss_mask", "attention_mask")
    ) and (a.global_loss_tokens, a.global_documents) == (b.global_loss_tokens, b.global_documents)


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_has_every_example_once(packing):
    reader, orders = order(packing), []
    for _ in range(3):
        rows = epoch(reader)
        assert all(row.real_tokens <= LENGTH for row in rows)
        assert all(row.loss_tokens == row.real_tokens - row.documents for row in rows)
        orders.append([number for row in rows for number in documents(row)[0]])
        assert sorted(orders[-1]) == list(range(COUNT))
        assert (len(rows) < COUNT / 2) is packing
    assert orders[0] != orders[1]
    assert reader.epoch == 3
    others = [number for row in epoch(order(packing, seed=4)) for number in documents(row)[0]]
    assert others != orders[0]


def test_one_example_a_row():
    batch = order(packing=False).take(10)
    assert [len(row) for row in documents(batch)] == [1] * 10


def test_a_packed_row_is_its_examples_one_after_another():
    reader = order(packing=True)
    batch = reader.take(4)
    rows = documents(batch)
    assert max(map(len, rows)) > 2
    assert same(batch, reader.examples.batch(rows))


@pytest.mark.parametrize("packing", [False, True])
def test_processes_share_a_batch(packing):
    whole, shares = order(packing), [order(packing), order(packing), order(packing)]
    for _ in range(20):
        batch = whole.take(7)
        parts = [share.take(7, rank, 3) for rank, share in enumerate(shares)]
        for name in ("tokens", "loss_mask", "attention_mask"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(batch, name))
        for part in parts:
            assert part.global_loss_tokens == batch.global_loss_tokens == batch.loss_tokens
            assert part.global_documents == batch.global_documents == batch.documents
        assert [len(part) for part in parts] == [2, 2, 3]
    assert whole.epoch > 2
    assert len(whole.take(1, 0, 2)) == 0


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 5, 11])
def test_resuming_goes_on_with_any_number_of_processes(packing, taken):
    early, whole = order(packing), order(packing)
    for _ in range(taken):
        early.take(5, 1, 2)
        whole.take(5)
    state = json.loads(json.dumps(early.state_dict()))
    assert state == whole.state_dict()
    assert {type(value) for value in state.values()} == {int}
    assert state.keys() == {"epoch", "place"}
    late = order(packing)
    late.load_state_dict(state)
    for _ in range(10):
        assert same(late.take(5), whole.take(5))


def test_a_batch_may_span_epochs_but_no_row_does():
    reader = order(packing=True)
    rows = len(epoch(order(packing=True)))
    batch = reader.take(rows + 2)
    found = documents(batch)
    assert sorted(itertools.chain(*found[:rows])) == list(range(COUNT))
    assert (reader.epoch, reader.place) == (1, 2)


def test_first_fit_by_hand():
    # 6 does not fit after 5; 4 does, and 3 goes into the second row
    assert pack_rows([5, 6, 4, 3, 9], 10) == [[0, 2], [1, 3], [4]]
    # with one open row the first is closed when the second is opened
    assert pack_rows([5, 6, 4, 3, 9], 10, most=1) == [[0], [1, 2], [3], [4]]
    assert pack_rows([10, 10], 10) == [[0], [1]]
    assert pack_rows([6, 10, 4], 10) == [[0, 2], [1]]  # room for the shortest keeps a row open


def test_packing_exceeds_no_length_and_loses_nothing():
    sizes, used = np.random.default_rng(1).integers(1, 41, 500).tolist(), []
    for most in (1, 3, 64):
        rows = pack_rows(sizes, 40, most)
        assert sorted(itertools.chain(*rows)) == list(range(500))
        filled = [sum(sizes[number] for number in row) for row in rows]
        assert max(filled) <= 40
        assert all(row == sorted(row) for row in rows)
        used.append(sum(filled) / (40 * len(rows)))
    assert used[0] < 0.8 < used[1] < 0.9 < used[2]  # the more rows are open, the fuller they get


def test_fingerprints_tell_packing_and_its_length():
    alone, packed = order(False), order(True)
    assert alone.fingerprint == examples().fingerprint
    assert alone.has_fingerprint(order(False, length=30).fingerprint)
    assert packed.has_fingerprint(order(True, seed=8).fingerprint)
    assert not packed.has_fingerprint(alone.fingerprint)
    assert not packed.has_fingerprint(order(True, length=30).fingerprint)


# Corpora


def write(path, rows):
    lines = (json.dumps({"prompt": prompt, "completion": end}) + "\n" for prompt, end in rows)
    path.write_text("".join(lines))
    return str(path)


def sums(tmp_path, count=100):
    return write(tmp_path / "sums.jsonl", [(f"{n}+1=", f"{n + 1}") for n in range(count)])


def config(train, **changes):
    return DataConfig(train, **{"format": "prompt_completion"} | changes)


def text(corpus, batch):
    """The text of each row up to end-of-text."""
    rows = (corpus.tokenizer.decode(row.tolist()) for row in batch.tokens)
    return [row.split("<|endoftext|>")[0] for row in rows]


def test_rows_are_held_out_over_the_whole_file(tmp_path):
    corpus = load_corpus(config(sums(tmp_path), held_out=0.04), 16)
    assert isinstance(corpus.train, ExampleOrder)
    assert text(corpus, corpus.held_out.spaced(9)) == [f"{n}+1={n + 1}" for n in (24, 49, 74, 99)]
    assert corpus.held_out_source == "4 of the 100 rows"
    assert len(corpus.train.examples) == 96
    assert corpus.completion_lengths == CompletionLengths(3, 3)  # two digits and end-of-text
    assert corpus.held_out.completion_length == 3
    assert corpus.chars_per_token == pytest.approx((2 + 2 + 2 + 3) / (3 + 3 + 3 + 4))
    assert set(corpus.tokenizer.characters) == set("0123456789+=")
    assert len(load_corpus(config(sums(tmp_path), held_out=0.5), 16).held_out) == 50


def test_the_end_of_the_file_and_nothing_held_out(tmp_path):
    end = load_corpus(config(sums(tmp_path), held_out_at="end"), 16)
    assert text(end, end.held_out.spaced(9)) == [f"{n}+1={n + 1}" for n in range(95, 100)]
    few = load_corpus(config(sums(tmp_path, 5)), 16)
    assert (few.held_out, few.chars_per_token, few.held_out_source) == (
        None, None, "no held-out text",
    )  # fmt: skip
    assert len(few.train.examples) == 5
    with pytest.raises(ValueError, match=r"data.held_out: it leaves no rows to train on"):
        load_corpus(config(sums(tmp_path, 1), held_out=0.9), 16)


def test_held_out_rows_of_a_file_of_their_own(tmp_path):
    valid = write(tmp_path / "valid.jsonl", [("1", "é"), ("2", "12345")])
    corpus = load_corpus(config(sums(tmp_path), valid=valid, completion_length=4), 16)
    assert len(corpus.train.examples) == 100
    batch, unk = corpus.held_out.spaced(9), corpus.tokenizer.unk
    assert batch.tokens[0, 1] == unk
    assert batch.loss_mask.sum(dim=1).tolist() == [4, 6]  # a longer one stays as it is
    assert corpus.completion_lengths == CompletionLengths(4, 4)
    assert corpus.chars_per_token == pytest.approx(6 / 10)
    assert corpus.held_out_source == "a text of its own"


@pytest.mark.parametrize("tokenizer", ["bpe:300", "bytes"])
def test_other_tokenizers(tokenizer, tmp_path):
    corpus = load_corpus(config(sums(tmp_path), tokenizer=tokenizer, packing=True), 32)
    batch = corpus.train.take(4)
    assert batch.documents > 8
    assert int(batch.attention_mask.max()) > 1
    again = load_corpus(config(sums(tmp_path)), 32, tokenizer=corpus.tokenizer)
    assert again.tokenizer is corpus.tokenizer


def test_a_learned_vocabulary_has_the_training_rows_alone(tmp_path):
    path = write(tmp_path / "a.jsonl", [("a", "b")] * 19 + [("c", "d")])
    corpus = load_corpus(config(path, held_out_at="end"), 16)
    assert corpus.tokenizer.characters == "ab"


def test_too_long_rows_and_wrong_sources(tmp_path):
    with pytest.raises(
        ValueError, match=r"sums\.jsonl, line 11: prompt of 5 tokens and completion"
    ):
        load_corpus(config(sums(tmp_path)), 7)
    with pytest.raises(ValueError, match=r"'pydoc' is no file here"):
        load_corpus(config("pydoc"), 16)


def test_settings_that_need_the_format(tmp_path):
    for setting, message in [
        (
            "data.packing=true",
            r"data.packing: only valid with data.format=prompt_completion, got true",
        ),
        ("data.completion_length=4", r"data.completion_length: only valid with .*, got 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_config("tiny", overrides=[setting])
        made = load_config("tiny", overrides=["data.format=prompt_completion", setting]).data
        assert made.packing or made.completion_length == 4
    chosen = "data.format=prompt_completion"
    with pytest.raises(ValueError, match=r"data.streaming: data.format=prompt_completion reads"):
        load_config("tiny", overrides=[chosen, "data.streaming=true"])
    with pytest.raises(ValueError, match=r"data.completion_length: expected at least 1, got 0"):
        load_config("tiny", overrides=[chosen, "data.completion_length=0"])
    with pytest.raises(ValueError, match=r"data.format: expected one of text, prompt_completion"):
        load_config("tiny", overrides=["data.format=pairs"])
