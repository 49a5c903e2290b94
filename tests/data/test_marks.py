"""Where given text stands in a sample's text: exact for any tokenizer, in linear time."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from sedd_fast.data.hub_tokenizers import HubTokenizer, TransformersTokenizer
from sedd_fast.data.prompts import decode, decode_samples, lay_out, read_template
from sedd_fast.data.tokenizers import ByteTokenizer, CharTokenizer

WORDS = ["▁the", "▁c", "at", "▁", "é", "日本", "<|endoftext|>", ".", "▁n't", "##s", "a</w>", "s"]
BYTES = [f"<0x{byte:02X}>" for byte in (10, 0x41, 0xC3, 0xA9, 0xE6, 0x97, 0xA5, 0xF0, 0xFF)]


def byte_level():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.add_special_tokens(["<|endoftext|>"])
    made.decoder = decoders.ByteLevel()
    return made


def words(decoder, vocabulary=(*WORDS, *BYTES)):
    """Any tokens, with holes among their ids."""
    ids = {word: 3 * number for number, word in enumerate(vocabulary)}
    made = Tokenizer(models.WordLevel(ids, unk_token="."))
    made.normalizer, made.decoder = normalizers.NFC(), decoder
    return made


def fallback(*more):
    return decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    )


DECODERS = {
    "fallback": lambda: words(fallback()),
    "llama": lambda: words(fallback(decoders.Strip(" ", 1, 0))),
    "metaspace": lambda: words(decoders.Metaspace()),
    "wordpiece": lambda: words(decoders.WordPiece()),
    "bpe": lambda: words(decoders.BPEDecoder()),
    "ctc": lambda: words(decoders.CTC("▁", "s")),
    "none": lambda: words(None),
    "byte level": byte_level,
}


def transformers_tokenizer(made):
    transformers = pytest.importorskip("transformers")
    return TransformersTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=made))


def tokenizers():
    yield "characters", CharTokenizer.from_text(["abc é日"])
    yield "bytes", ByteTokenizer()
    for name, make in DECODERS.items():
        yield name, HubTokenizer(make())
    yield "transformers, byte level", transformers_tokenizer(byte_level())
    yield "transformers, llama", transformers_tokenizer(DECODERS["llama"]())


@pytest.mark.parametrize("kind", [*DECODERS, "characters", "bytes", "transformers"])
def test_marks_are_the_lengths_of_decoded_prefixes(kind):
    generator = np.random.default_rng(0)
    for name, tokenizer in tokenizers():
        if not name.startswith(kind):
            continue
        mask = tokenizer.vocab_size
        for length in (1, 7, 40, 150):
            for share in (0.0, 0.1, 0.5):
                ids = generator.integers(tokenizer.vocab_size, size=length)
                ids = np.repeat(ids, generator.integers(1, 4, size=length))[:length]
                ids[generator.random(length) < share / 5] = mask
                known = torch.from_numpy(generator.random(length) < 0.5)
                tokens = torch.from_numpy(ids)[None]
                (found,) = decode_samples(tokens, known, tokenizer, mask, keep_after_eot=True)
                whole = tokens[0].tolist()
                assert found.text == decode(whole, tokenizer, mask)
                expected = [
                    tuple(len(decode(whole[:edge], tokenizer, mask)) for edge in span)
                    for span in found.given
                ]
                assert found.marks == expected, (name, whole)


def test_tokens_that_only_the_network_has_are_replacements():
    tokenizer = ByteTokenizer()
    ids = [*b"ab", 257, 300, *b"c", 320, 257]
    known = torch.tensor([True, False, True, False, False, False, True])
    (found,) = decode_samples(torch.tensor([ids]), known, tokenizer, 320)
    assert found.text == "ab\ufffd\ufffdc[MASK]\ufffd"
    assert found.tokens == ids
    assert found.marks == [(0, 1), (2, 3), (11, 12)]


def test_a_long_run_of_byte_tokens_is_decoded_as_a_whole():
    tokenizer = HubTokenizer(DECODERS["llama"]())
    day = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "日".encode()]
    ids = day * 20  # 20 characters; a prefix that ends within one is a replacement for each byte
    known = torch.arange(len(ids)) % 4 < 2
    (found,) = decode_samples(torch.tensor([ids]), known, tokenizer)
    assert found.text == "日" * 20
    assert found.marks[:3] == [(0, 2), (4, 2), (8, 10)]
    assert found.marks[10:] == [(40, 14), (44, 46), (16, 50), (52, 18), (56, 58)]
    assert found.marks[-1][1] == len(decode(ids[:58], tokenizer))


def test_the_tokens_decoded_grow_as_the_text_does(monkeypatch):
    decoded, totals, decode_bytes = [], [], ByteTokenizer.decode

    def counted(self, ids):
        decoded.extend(ids := list(ids))
        return decode_bytes(self, ids)

    monkeypatch.setattr(ByteTokenizer, "decode", counted)
    for gaps in (250, 1000):
        pieces, length = read_template("a[1]" * gaps, ByteTokenizer())
        tokens, known = lay_out(pieces, ByteTokenizer(), length)
        decoded.clear()
        (found,) = decode_samples(tokens[None], known, ByteTokenizer())
        assert found.marks == [(2 * i, 2 * i + 1) for i in range(gaps)]
        totals.append(len(decoded))
    assert totals[1] < 4.1 * totals[0] < 50 * length
