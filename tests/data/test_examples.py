"""Prompts and completions: rows of files, tokens, padded and packed batches."""

import json

import pytest
import torch

from sedd_fast.data.batches import Batch
from sedd_fast.data.blocks import evenly_spaced
from sedd_fast.data.config import DataConfig
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.example_rows import read_rows
from sedd_fast.data.examples import Example, Examples, encode_rows, read_examples, read_prompt
from sedd_fast.data.hub_tokenizers import HubTokenizer
from sedd_fast.data.tokenizers import ByteTokenizer, CharTokenizer

ABC = CharTokenizer("abc")  # ids 0 1 2, end-of-text 3, unknown 4
END = ABC.eot
LINE = '{"prompt": "ab", "completion": "c"}'


class NoEnd(CharTokenizer):
    """A vocabulary without end-of-text."""

    eot = None


def write(path, *rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return str(path)


def example(prompt, completion, where="x.jsonl, line 1"):
    return Example([*prompt], [*completion], len(completion) - 1, where)


def three(**changes):
    """Examples of 3 + 2, 1 + 1 and 0 + 4 tokens; end-of-text is 9."""
    rows = [example([1, 2, 3], [4, 9]), example([5], [9]), example([], [6, 7, 8, 9])]
    return Examples(rows, **{"length": 12, "completion_length": 1, "eot": 9} | changes)


# Rows and their errors


def test_prompts_and_completions_become_tokens(tmp_path):
    more = {"prompt": "", "completion": "cab", "source": "a book", "messages": None}
    path = write(tmp_path / "a.jsonl", LINE, "", more)
    assert read_examples(path, ABC) == [
        Example([0, 1], [2, END], 1, f"{path}, line 1"),
        Example([], [2, 0, 1, END], 3, f"{path}, line 3"),
    ]
    assert read_examples(path, NoEnd("abc"))[1].completion == [2, 0, 1]


def test_files_globs_and_lists(tmp_path):
    for name, text in (("a.jsonl", "a"), ("b.jsonl", "b"), ("c.json", "c")):
        write(tmp_path / name, {"prompt": text, "completion": "c"})
    source = [str(tmp_path / "c.json"), str(tmp_path / "*.jsonl")]
    assert [each.prompt for each in read_examples(source, ABC)] == [[2], [0], [1]]
    assert len(read_examples(source[1], ABC)) == 2


def test_end_of_text_that_the_text_has_is_not_put_twice(tmp_path):
    tokenizer = HubTokenizer.from_text(["ab"], 257)
    texts = ("a", "b<|endoftext|>", "<|endoftext|>b")
    path = write(tmp_path / "a.jsonl", *({"prompt": "", "completion": text} for text in texts))
    found = read_examples(path, tokenizer)
    end, (a, b) = tokenizer.eot, tokenizer.encode("ab")
    assert [each.completion for each in found] == [[a, end], [b, end], [end, b, end]]
    assert [each.characters for each in found] == [1, 1, 14]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        (
            {"text": "a"},
            "no 'prompt' and no 'completion'; expected {\"prompt\": .* or {\"messages\"",
        ),
        ({"prompt": "a"}, "no 'completion'; expected"),
        ({"completion": "a"}, "no 'prompt'; expected"),
        ({"prompt": "a", "completion": None}, "no 'completion'; expected"),
        ({"prompt": "a", "completion": 4}, "completion: expected text, got 4; put it in quotes"),
        ({"prompt": ["a"], "completion": "a"}, r"prompt: expected text, got \['a'\]"),
        ({"prompt": "a", "completion": ""}, "empty completion; write the text that follows"),
        (
            {"prompt": "a", "completion": "b", "messages": [{}]},
            "both 'messages' and 'completion'; leave one of them out",
        ),
        ({"prompt": "\ud800", "completion": "b"}, "text: character 0 is .* a surrogate"),
        ({"prompt": "aé", "completion": "b"}, r"text: the vocabulary of 3 characters has no 'é'"),
        ({"prompt": "a", "completion": "bé"}, r"text: the vocabulary of 3 characters has no 'é'"),
    ],
)
def test_the_wrong_row_is_named(row, message, tmp_path):
    path = write(tmp_path / "sums.jsonl", LINE, "", row)
    with pytest.raises(ValueError, match=rf"^\S+sums\.jsonl, line 3: {message}") as caught:
        read_examples(path, ABC)
    assert "\n" not in str(caught.value)


def test_wrong_sources_are_explained(tmp_path):
    empty = write(tmp_path / "empty.jsonl", "", "")
    for source, message in [
        ("pydoc", "'pydoc' is no file here, .* give a .jsonl file"),
        (["docstrings"], "'docstrings' is no file"),
        ("wikitext103", "'wikitext103' is no file"),
        ("hf:owner/name", "'hf:owner/name' is no file"),
        (["owner/name"], "'owner/name' is no file"),
        (str(tmp_path / "none.jsonl"), r"no file .*none\.jsonl"),
        (empty, r"data: \S+empty\.jsonl: no rows; expected lines such as"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_examples(source, ABC)


def test_unknown_characters_of_a_corpus_and_other_failures(tmp_path):
    path = write(tmp_path / "a.jsonl", LINE, {"prompt": "aé", "completion": "é"})
    found = list(encode_rows(read_rows(path), ABC))
    assert (found[1].prompt, found[1].completion) == ([0, ABC.unk], [ABC.unk, END])
    assert found[0] == read_examples(write(tmp_path / "a.jsonl", LINE), ABC)[0]
    path = write(tmp_path / "b.jsonl", LINE, LINE, '{"prompt": "\\ud800", "completion": "b"}')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 3: text: character 0 is .* a surrogate"):
        list(encode_rows(read_rows(path), ByteTokenizer()))


def test_rows_of_many_batches_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("sedd_fast.data.examples._ROWS", 2)
    rows = [{"prompt": "a" * n, "completion": "b" * (n + 1)} for n in range(5)]
    path = write(tmp_path / "a.jsonl", *rows)
    found = list(encode_rows(read_rows(path), ABC))
    assert found == read_examples(path, ABC)
    assert [len(each.prompt) for each in found] == [0, 1, 2, 3, 4]


class OutOfRange(CharTokenizer):
    def encode_corpus(self, texts):
        return [[7] for _ in texts]


def test_ids_outside_the_vocabulary_are_named(tmp_path):
    rows = read_rows(write(tmp_path / "a.jsonl", LINE))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: ids: token 7 lies outside"):
        list(encode_rows(rows, OutOfRange("abc")))


def test_a_completion_without_tokens_is_empty(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": " "})
    with pytest.raises(ValueError, match="line 1: empty completion: its text gives no tokens"):
        read_examples(path, HubTokenizer(made))


def test_a_prompt_with_or_without_its_completion():
    assert read_prompt({"prompt": "ab", "completion": "c", "id": 4}, ABC) == ([0, 1], "c")
    assert read_prompt({"prompt": ""}, ABC) == ([], None)
    for record, message in [
        ({"completion": "a"}, r"^no 'prompt'; expected"),
        ({"prompt": 3}, r"^prompt: expected text, got 3"),
        ({"prompt": "a", "completion": 3}, r"^completion: expected text, got 3"),
        ({"prompt": "é"}, "no 'é'"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_prompt(record, ABC)


# Batches


def test_a_padded_batch_by_hand():
    batch = three().batch([[0], [2], [1]])
    assert batch.tokens.tolist() == [
        [1, 2, 3, 4, 9, 9, 9, 9],
        [6, 7, 8, 9, 9, 9, 9, 9],
        [5, 9, 9, 9, 9, 9, 9, 9],
    ]
    assert batch.loss_mask.int().tolist() == [
        [0, 0, 0, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert batch.attention_mask.tolist() == [
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert (batch.tokens.dtype, batch.attention_mask.dtype) == (torch.int64, torch.int64)
    assert (batch.loss_tokens, batch.real_tokens, batch.documents) == (7, 11, 3)
    assert (batch.global_loss_tokens, batch.global_documents) == (7, 3)


def test_a_packed_batch_by_hand():
    batch = three().batch([[0, 2, 1], [1]])
    # 11 tokens are rounded up to 16, but the length of the model is 12
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 9, 6, 7, 8, 9, 5, 9, 9], [5] + [9] * 11]
    assert batch.loss_mask.int().tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0],
        [0, 1] + [0] * 10,
    ]
    assert batch.attention_mask.tolist() == [
        [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0],
        [1, 1] + [0] * 10,
    ]
    assert (batch.loss_tokens, batch.real_tokens, batch.documents) == (8, 13, 4)


def test_short_completions_are_extended_by_end_of_text():
    batch = three(completion_length=3).batch([[0], [1, 2]])
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 9, 9, 9, 9], [5, 9, 9, 9, 6, 7, 8, 9]]
    assert batch.loss_mask.int().tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 2, 2, 2, 2]]
    assert three(completion_length=3).loss_sizes.tolist() == [3, 3, 4]
    assert three(completion_length=None).completion_length == 4
    assert three(completion_length=None).sizes.tolist() == [7, 5, 4]
    assert three(completion_length=None, eot=None).completion_length == 1
    with pytest.raises(
        ValueError, match=r"completion_length: expected 1, .* no end-of-text .* got 2"
    ):
        three(completion_length=2, eot=None)


def test_padding_without_end_of_text_is_0():
    batch = three(eot=None).batch([[1]])
    assert batch.tokens.tolist() == [[5, 9, 0, 0, 0, 0, 0, 0]]


def test_examples_too_long_for_the_model():
    rows = [example([1], [2, 9]), example([1] * 5, [2, 9], "f.jsonl, line 7")]
    for options, message in [
        ({"length": 6}, r"prompt of 5 tokens and completion of 2 exceed model\.length=6; shorten "
         r"it, or raise model\.length$"),
        ({"length": 5}, r"prompt of 5 tokens leaves no room for a completion in model\.length=5; "),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=rf"^f\.jsonl, line 7: {message}"):
            Examples(rows, **{"completion_length": 1, "eot": 9} | options)
    assert len(Examples(rows, 7, 1, 9)) == 2
    # An extension goes as far as there is room.
    assert Examples(rows, 8, 4, 9).loss_sizes.tolist() == [4, 3]
    with pytest.raises(ValueError, match=r"rows: one has 10 tokens, expected at most 7"):
        Examples(rows, 7, 1, 9).batch([[0, 1]])
    with pytest.raises(ValueError, match=r"rows: row 1 has 7 tokens, expected at most 4"):
        Examples(rows, 7, 1, 9).batch([[0], [1]], width=4)
    with pytest.raises(ValueError, match="no rows for the test"):
        Examples([], 7, name="the test")


def test_evenly_spaced_examples():
    rows = [example([], [n]) for n in range(10)]
    batch = Examples(rows, 4, 1).spaced(4)
    assert batch.tokens[:, 0].tolist() == evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert batch.documents == len(batch) == 4
    assert len(Examples(rows, 4, 1).spaced(100)) == 10


def test_characters_over_tokens_with_loss():
    assert three().chars_per_token == pytest.approx((1 + 0 + 3) / (2 + 1 + 4))
    assert three(completion_length=3).chars_per_token == pytest.approx(4 / (3 + 3 + 4))


def test_the_fingerprint_changes_with_every_part():
    whole = three()
    assert whole.has_fingerprint(three().fingerprint)
    rows = [example([1, 2, 3], [4, 9]), example([5], [9]), example([], [6, 7, 8, 9])]
    others = [
        [*rows[:2], example([], [6, 7, 1, 9])],
        [example([1, 2], [3, 4, 9]), *rows[1:]],  # a boundary within an example
        [example([1, 2, 3], [4]), example([9, 5], [9]), rows[2]],  # and one between two
        rows[:2],
    ]
    prints = {Examples(each, 12, 1, 9).fingerprint for each in others}
    assert len(prints | {whole.fingerprint, three(completion_length=2).fingerprint}) == 6
    assert not whole.has_fingerprint(three(completion_length=2).fingerprint)


def test_a_batch_without_masks_and_its_parts():
    batch = Batch(torch.arange(10).view(5, 2))
    assert (batch.loss_tokens, batch.real_tokens, batch.documents, len(batch)) == (10, 10, 5, 5)
    parts = batch.chunk(3)
    assert [part.tokens.tolist() for part in parts] == [
        [[0, 1], [2, 3]],
        [[4, 5], [6, 7]],
        [[8, 9]],
    ]
    assert [part.loss_tokens for part in parts] == [4, 4, 2]
    assert all((part.global_loss_tokens, part.global_documents) == (10, 5) for part in parts)
    assert parts[0].loss_mask is parts[0].attention_mask is None


def test_parts_of_a_batch_with_masks():
    batch = three().batch([[0, 1], [2], [1]])
    parts = [part.to("cpu") for part in batch.chunk(2)]
    for name in ("tokens", "loss_mask", "attention_mask"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name))
    assert [(part.loss_tokens, part.documents) for part in parts] == [(7, 3), (1, 1)]
    assert [(part.global_loss_tokens, part.global_documents) for part in parts] == [(8, 4)] * 2


def test_only_documents_with_loss_are_counted():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    numbers = torch.tensor([[1, 1, 2, 0], [1, 2, 3, 3]])
    loss = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    assert Batch(tokens, attention_mask=numbers).documents == 5
    assert Batch(tokens, loss, numbers).documents == 3
    assert Batch(tokens, loss & (numbers == 2)).documents == 1
    assert Batch(tokens, torch.ones_like(loss), numbers).documents == 5  # padding is no document


def test_masks_of_another_shape_or_dtype():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"loss_mask: expected torch.bool of shape \(2, 4\)"):
        Batch(tokens, loss_mask=torch.ones(2, 3).bool())
    with pytest.raises(ValueError, match=r"attention_mask: expected torch.int64 .* got torch.bool"):
        Batch(tokens, attention_mask=torch.ones(2, 4).bool())


def test_references_are_those_of_training_up_to_end_of_text():
    tokenizer = HubTokenizer.from_text(["ab"], 257)
    for completion, expected in (("b", "b"), ("b<|endoftext|>", "b"), ("a<|endoftext|>b", "a")):
        assert read_prompt({"prompt": "a", "completion": completion}, tokenizer)[1] == expected
    assert read_prompt({"prompt": "a"}, tokenizer)[1] is None
    assert read_prompt({"prompt": "a", "completion": "é"}, ABC)[1] == "\ufffd"


def test_rows_that_are_trained_on_as_text_are_warned_of(tmp_path, caplog):
    path = write(tmp_path / "rows.jsonl", *[LINE] * 20)
    load_corpus(DataConfig(path, tokenizer="bytes"), 8)
    assert "take data.format=prompt_completion" in caplog.text
    caplog.clear()
    (tmp_path / "a.txt").write_text('{"text": "a"}\n' * 20)
    load_corpus(DataConfig(str(tmp_path / "a.txt"), tokenizer="bytes"), 8)
    assert not caplog.text
