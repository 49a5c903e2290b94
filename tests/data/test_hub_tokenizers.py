"""Tokenizers of other libraries encode exactly the text, whatever settings their files hold."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from sedd_fast.data.hub_tokenizers import HubTokenizer, TransformersTokenizer
from sedd_fast.data.tokenizers import ByteTokenizer, load_tokenizer

TEXT = "the cat sat"


def backend(**model):
    """Byte-level BPE without merges, with [CLS] and [SEP]."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "[PAD]", "[CLS]", "[SEP]", "th"]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")], **model))
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def with_settings(made):
    """With everything that a file may ask to be done to the tokens of a text."""
    made.enable_truncation(4)
    made.enable_padding(length=20, pad_id=made.token_to_id("[PAD]"), pad_token="[PAD]")
    ids = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ids)
    return made


@pytest.mark.parametrize("kind", ["file", "directory", "object", "transformers"])
def test_truncation_padding_and_special_tokens_are_not_applied(kind, tmp_path):
    expected = backend().encode(TEXT).ids
    made, path = with_settings(backend()), tmp_path / "tokenizer.json"
    made.save(str(path))
    content = path.read_bytes()
    if kind == "transformers":
        transformers = pytest.importorskip("transformers")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=4)
        tokenizer = TransformersTokenizer(fast)
    elif kind == "object":
        tokenizer = HubTokenizer(made)
        assert made.truncation["max_length"] == 4  # the caller's own object is as it was
    else:
        tokenizer = load_tokenizer(path if kind == "file" else tmp_path)
    assert tokenizer.encode(TEXT) == expected
    assert tokenizer.encode_corpus([TEXT, "a", ""]) == [expected, backend().encode("a").ids, []]
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").encode_corpus([TEXT, "a"])[0] == expected
    assert path.read_bytes() == content


def test_dropout_of_bpe_is_not_applied(tmp_path):
    backend(dropout=0.9).save(str(tmp_path / "tokenizer.json"))
    tokenizer, expected = load_tokenizer(tmp_path), backend().encode(TEXT).ids
    assert all(tokenizer.encode(TEXT) == expected for _ in range(20))
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend(dropout=0.9))
    tokenizer = TransformersTokenizer(fast)
    assert all(tokenizer.encode(TEXT) == expected for _ in range(20))
    assert fast.backend_tokenizer.model.dropout == pytest.approx(0.9)  # the caller's own object


def words_with_holes():
    return {"<unk>": 0, "the": 3, "cat": 4, "sat": 30}


@pytest.mark.parametrize("kind", ["tokenizers", "fast", "slow"])
def test_the_largest_id_counts_where_ids_have_holes(kind, tmp_path):
    vocabulary = words_with_holes()
    if kind == "slow":
        transformers = pytest.importorskip("transformers")
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        files = [str(tmp_path / name) for name in ("vocab.json", "merges.txt")]
        tokenizer = TransformersTokenizer(transformers.CTRLTokenizer(*files))
    else:
        made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = HubTokenizer(made)
        if kind == "fast":
            transformers = pytest.importorskip("transformers")
            fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
            tokenizer = TransformersTokenizer(fast)
    assert tokenizer.vocab_size == 31
    assert tokenizer.decode([3, 10, 29, 4]) == "the cat"
    assert tokenizer.decode([7]) == ""
    with pytest.raises(ValueError, match="token 31 lies outside"):
        tokenizer.decode([31])


def test_a_text_that_is_no_unicode_is_named():
    tokenizers = [HubTokenizer(backend()), ByteTokenizer()]
    for tokenizer in tokenizers:
        for encode in (tokenizer.encode, lambda text, own=tokenizer: own.encode_corpus([text])):
            with pytest.raises(ValueError, match=r"character 1 is '\\ud800', a surrogate"):
                encode("a\ud800")


@pytest.mark.parametrize("kind", ["tokenizers", "transformers"])
def test_a_failure_of_the_library_names_the_tokenizer(kind):
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="none"))
    tokenizer, name = HubTokenizer(made), "WordLevel of 1 tokens"
    if kind == "transformers":
        transformers = pytest.importorskip("transformers")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
        tokenizer, name = TransformersTokenizer(fast), "PreTrainedTokenizerFast|TokenizersBackend"
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_corpus([text])):
        with pytest.raises(ValueError, match=rf"tokenizer: ({name}) failed \(WordLevel error"):
            encode("b")


def test_wrong_files_of_gpt2_and_a_byte_order_mark(tmp_path):
    backend().save(str(tmp_path / "plain.json"))
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "plain.json").read_bytes())
    assert load_tokenizer(marked).encode(TEXT) == backend().encode(TEXT).ids
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab.json and .*merges.txt are not GPT-2's files"):
        load_tokenizer(tmp_path)
