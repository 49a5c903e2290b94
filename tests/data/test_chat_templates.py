"""Rows of messages, written by the chat template of a `transformers` tokenizer."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from sedd_fast.data.config import DataConfig
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.examples import read_examples, read_prompt
from sedd_fast.data.hub_tokenizers import HubTokenizer, TransformersTokenizer
from sedd_fast.data.tokenizers import ByteTokenizer, CharTokenizer, load_tokenizer

transformers = pytest.importorskip("transformers")

WORDS = ["?", "<s>", "<end>", "<user>", "<assistant>", "hi", "there", "who", "me", "you"]
TEMPLATE = (
    "<s>{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HI = {"role": "user", "content": "hi there"}
WHO = {"role": "user", "content": "who"}
YOU = {"role": "assistant", "content": "you"}
ME = {"role": "assistant", "content": "me me"}


def backend(template=TEMPLATE, end="<end>"):
    """A tokenizer of words, with marks of roles as special tokens."""
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="?", bos_token="<s>", eos_token=end,
        additional_special_tokens=["<end>", "<user>", "<assistant>"],
    )  # fmt: skip
    fast.chat_template = template
    return fast


def ids(text):
    return [WORDS.index(word) for word in text.split()]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_completion_is_what_the_template_writes_for_the_last_message(tmp_path):
    path = write(tmp_path / "chat.jsonl", {"messages": [HI, ME]}, {"messages": [HI, YOU, WHO, ME]})
    short, long = read_examples(path, TransformersTokenizer(backend()))
    assert short.prompt == ids("<s> <user> hi there <end> <assistant>")
    assert short.completion == ids("me me <end>")  # no second end-of-text after the line feed
    assert short.characters == len(" me me ")
    turns = "<s> <user> hi there <end> <assistant> you <end> <user> who <end> <assistant>"
    assert long.prompt == ids(turns)
    assert (long.completion, long.where) == (short.completion, f"{path}, line 2")


def test_another_end_of_text_than_the_template_writes_is_put_at_the_end(tmp_path):
    path = write(tmp_path / "chat.jsonl", {"messages": [HI, ME]})
    (found,) = read_examples(path, TransformersTokenizer(backend(end="?")))
    assert found.completion == ids("me me <end> ?")
    assert found.characters == len(" me me <end>\n")


def test_prompts_and_completions_need_no_template(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "hi", "completion": "you"})
    (found,) = read_examples(path, TransformersTokenizer(backend(None)))
    assert (found.prompt, found.completion) == (ids("hi"), ids("you <end>"))


def test_the_prompt_of_messages_and_its_reference():
    tokenizer = TransformersTokenizer(backend())
    prompt = ids("<s> <user> hi there <end> <assistant>")
    assert read_prompt({"messages": [HI, ME]}, tokenizer) == (prompt, "me me")
    # What training puts there, up to end-of-text: here <end> is another token than that.
    other = TransformersTokenizer(backend(end="?"))
    assert read_prompt({"messages": [HI, ME]}, other) == (prompt, "me me <end>")
    assert read_prompt({"messages": [HI]}, tokenizer) == (prompt, None)


def test_a_saved_tokenizer_keeps_its_template(tmp_path):
    TransformersTokenizer(backend()).save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert read_prompt({"messages": [WHO]}, again)[0] == ids("<s> <user> who <end> <assistant>")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages: expected a list, got 'hi'"),
        ([HI, "you"], "messages: message 2: expected an object with text under 'role' .* 'you'"),
        ([{"role": "user"}, ME], "messages: message 1: expected an object with text"),
        ([HI, {"role": "assistant", "content": ["a"]}], "messages: message 2: expected an object"),
        ([], "messages: no message before the assistant's"),
        ([ME], "messages: no message before the assistant's; add the user's"),
        ([HI, ME, WHO], "messages: the last one has the role 'user', expected 'assistant'"),
        ([HI, ME | {"content": ""}], "empty completion: the assistant's message has no content"),
    ],
)
def test_the_wrong_message_is_named(messages, message, tmp_path):
    path = write(tmp_path / "chat.jsonl", {"messages": [HI, ME]}, {"messages": messages})
    with pytest.raises(ValueError, match=rf"^\S+chat\.jsonl, line 2: {message}"):
        read_examples(path, TransformersTokenizer(backend()))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if add_generation_prompt %}"
            "{{ raise_exception('Roles must\nalternate') }}{% endif %}",
            r"messages: the chat template of .* failed \(Roles must\); check the roles",
        ),
        ("{% for m in messages %}", r"messages: the chat template of .* failed \(.*endfor"),
        ("{{ messages[0].nothing.more }}", "messages: the chat template of .* failed"),
        (
            "{{ messages | length }} {{ messages[-1]['content'] }}",
            "messages: the chat template writes the earlier messages differently .* 'prompt' and",
        ),
        (
            None,
            "messages: the tokenizer .* has no chat template; write 'prompt' and ",
        ),
    ],
)
def test_templates_that_do_not_work_are_explained(template, message, tmp_path):
    path = write(
        tmp_path / "chat.jsonl", {"prompt": "a", "completion": "b"}, {"messages": [HI, ME]}
    )
    tokenizer = TransformersTokenizer(backend(template))
    with pytest.raises(ValueError, match=rf"^\S+chat\.jsonl, line 2: {message}") as caught:
        read_examples(path, tokenizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^{message}"):
        read_prompt({"messages": [HI, ME]}, tokenizer)


@pytest.mark.parametrize("kind", ["characters", "bytes", "tokenizers"])
def test_other_tokenizers_have_no_template(kind):
    tokenizer = {
        "characters": CharTokenizer("abc"),
        "bytes": ByteTokenizer(),
        "tokenizers": HubTokenizer(backend().backend_tokenizer),
    }[kind]
    with pytest.raises(ValueError, match=r"the tokenizer \(.* tokens\) has no chat template"):
        read_prompt({"messages": [HI]}, tokenizer)


def test_a_corpus_of_messages(tmp_path):
    TransformersTokenizer(backend()).save(tmp_path / "tokenizer")
    path = write(tmp_path / "chat.jsonl", {"messages": [HI, YOU]}, {"messages": [WHO, ME]})
    config = DataConfig(path, held_out=0, format="prompt_completion")
    with pytest.raises(ValueError, match=r"line 1: messages: the tokenizer \(characters.* no chat"):
        load_corpus(config, 16)
    config = DataConfig(
        path, held_out=0, format="prompt_completion", tokenizer=str(tmp_path / "tokenizer")
    )
    batch = load_corpus(config, 16).train.examples.batch([[0], [1]])
    end = WORDS.index("<end>")
    first, second = (ids(f"<s> <user> {text}") for text in (
        "hi there <end> <assistant> you <end>", "who <end> <assistant> me me <end>"
    ))  # fmt: skip
    # the longest completion has three tokens
    assert batch.tokens.tolist() == [(first + [end] * 8)[:16], (second + [end] * 8)[:16]]
    assert batch.loss_mask.int().tolist() == [
        [0] * 6 + [1] * 3 + [0] * 7,
        [0] * 5 + [1] * 3 + [0] * 8,
    ]
