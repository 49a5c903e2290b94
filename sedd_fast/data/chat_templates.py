"""Messages of a chat as text, by the chat template of a `transformers` tokenizer."""

import reprlib
from typing import Any

from sedd_fast.data.basic_tokenizers import Tokenizer
from sedd_fast.data.hub_tokenizers import TransformersTokenizer
from sedd_fast.data.libraries import explained

#: A message has at least "role" and "content", both text.
Message = dict[str, Any]


def check_messages(messages: Any) -> None:
    """ValueError unless `messages` are some that a chat template could write."""
    if not isinstance(messages, list):
        raise ValueError(f"messages: expected a list, got {reprlib.repr(messages)}")
    for number, message in enumerate(messages, start=1):
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise ValueError(
                f"messages: message {number}: expected an object with text under 'role' and "
                f"'content', got {reprlib.repr(message)}"
            )
    if not messages or (len(messages) == 1 and ends_with_assistant(messages)):
        raise ValueError("messages: no message before the assistant's; add the user's")


def ends_with_assistant(messages: list[Message]) -> bool:
    """Whether the last message is the assistant's."""
    return bool(messages[-1]["role"] == "assistant")


def render(messages: list[Message], tokenizer: Tokenizer) -> tuple[str, str | None]:
    """The prompt and the completion that the chat template writes.

    Args:
        messages: those of a chat, checked by :func:`check_messages`.
        tokenizer: a `TransformersTokenizer` of a model that has a chat template.

    Returns:
        The prompt: all messages before the assistant's last one, and the start of that. The
        completion: the rest of the whole text, without white space after its end-of-text; None
        where the last message is not the assistant's.

    Raises:
        ValueError: no chat template; an error in it; or it writes the earlier messages differently
            once the last one is there, so that the prompt is not the start of the whole text.
    """
    if not ends_with_assistant(messages):
        return _apply(messages, tokenizer, starts_answer=True), None
    prompt = _apply(messages[:-1], tokenizer, starts_answer=True)
    whole = _apply(messages, tokenizer, starts_answer=False)
    if not whole.startswith(prompt):
        raise ValueError(
            "messages: the chat template writes the earlier messages differently when the last one "
            "follows: the whole text does not start with the prompt; write 'prompt' and "
            "'completion' instead"
        )
    completion = whole.removeprefix(prompt)
    end = tokenizer.backend.eos_token if isinstance(tokenizer, TransformersTokenizer) else None
    stripped = completion.rstrip()
    return prompt, stripped if end and stripped.endswith(end) else completion


def _apply(messages: list[Message], tokenizer: Tokenizer, starts_answer: bool) -> str:
    template = getattr(getattr(tokenizer, "backend", None), "chat_template", None)
    if not isinstance(tokenizer, TransformersTokenizer) or not template:
        name = getattr(tokenizer, "name", type(tokenizer).__name__)
        raise ValueError(
            f"messages: the tokenizer ({name}) has no chat template; write 'prompt' and "
            "'completion', or take a tokenizer of transformers that has one, by the name "
            "transformers:DIRECTORY or transformers:NAME"
        )
    what = f"messages: the chat template of {tokenizer.name} failed"
    with explained(what, "check the roles and their order", Exception):
        text = tokenizer.backend.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=starts_answer
        )
    return str(text)
