"""The text of the tokens that a network generated after a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from sedd_fast.data.hub_tokenizers import TransformersTokenizer
from sedd_fast.data.prompts import decode
from sedd_fast.files.hub_vocabulary import special_ids
from sedd_fast.text.network import Network


@dataclass(frozen=True)
class AnswerDecoder:
    """Decodes generated tokens, up to the first that ends them.

    These are end-of-text, the end tokens of the network's generation_config.json, and with a
    tokenizer of transformers all special tokens but the unknown one, which is left out: of several
    tokens that end a text (LLaDA's <|endoftext|> and <|eot_id|>) the tokenizer names one alone.
    """

    network: Network

    @property
    def _backend(self) -> Any:
        tokenizer = self.network.tokenizer
        return tokenizer.backend if isinstance(tokenizer, TransformersTokenizer) else None

    @cached_property
    def _unknown(self) -> int | None:
        found = None if self._backend is None else self._backend.unk_token_id
        return None if found == self.network.tokenizer.eot else found

    @cached_property
    def _ends(self) -> set[int | None]:
        special = set() if self._backend is None else special_ids(self._backend)
        network = getattr(self.network.model, "network", None)
        named = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
        more = named if isinstance(named, (list, tuple)) else [named]
        ends = {self.network.tokenizer.eot, *more, *(special - {self._unknown})}
        return ends - {None, self.network.model.graph.mask_index}

    def decode(self, tokens: Sequence[int], until: str | Sequence[str] | None = None) -> str:
        """The text, up to the first of the strings `until`."""
        kept = takewhile(lambda token: token not in self._ends, tokens)
        words = [token for token in kept if token != self._unknown]
        text = decode(words, self.network.tokenizer, self.network.model.graph.mask_index)
        for end in [until] if isinstance(until, str) else until or []:
            text = text.partition(end)[0] if end else text
        return text
