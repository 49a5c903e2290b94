"""A causal language model of `transformers` that judges text: nats per token, and features.

The text is tokenised anew with the judge's own tokenizer, without special tokens (an end-of-text in
the text becomes the judge's). A text longer than the judge's context is cut into windows that do
not overlap. The first token of a window is context only: it is not scored. The code of SEDD and
MDLM does the same (but SEDD passes its own GPT-2 tokens to the judge).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sedd_fast.data.libraries import explained
from sedd_fast.extras import import_library
from sedd_fast.files import hub
from sedd_fast.progress import Report

_USUAL = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # of papers
_DEFAULT_CONTEXT = 1024  # where the configuration names none
_UNLIMITED = 10**9  # a larger model_max_length means that the tokenizer names none


@dataclass(frozen=True)
class Judge:
    """A judge; make one with :meth:`from_pretrained`.

    Attributes:
        name: hub name or directory that it was loaded from.
        model: a causal language model of `transformers`, in evaluation mode.
        tokenizer: the model's tokenizer of `transformers`.
        context: tokens that the model reads at once.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int

    @classmethod
    def from_pretrained(
        cls, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Judge":
        """Load by hub name or from a local directory.

        Raises:
            ValueError: `transformers` is not installed, or nothing of that name could be loaded.

        Example:
            >>> judge = Judge.from_pretrained("gpt2-large", device="cuda")
        """
        transformers = import_library("transformers", "eval", f"--judge: {name!r}")
        remedy = (
            "give the name of a causal language model on the hub, or a directory that holds one "
            "with its tokenizer"
        )
        close = "" if Path(name).exists() else hub.near(name, _USUAL)
        failed = f"--judge: {name!r}{close} could not be loaded"
        with explained(failed, remedy, OSError, ValueError, KeyError), hub.access(name):
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            model = transformers.AutoModelForCausalLM.from_pretrained(name)
        # Converted here: the argument for it has changed its name between versions.
        model = model.to(device=device, dtype=dtype).eval()
        positions = getattr(model.config, "max_position_embeddings", None) or _UNLIMITED
        context = min(positions, tokenizer.model_max_length)
        return cls(name, model, tokenizer, context if context < _UNLIMITED else _DEFAULT_CONTEXT)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The judge's tokens of each text."""
        options = {"add_special_tokens": False, "truncation": False, "padding": False}
        return self.tokenizer(list(texts), **options, verbose=False)["input_ids"]

    @torch.no_grad()
    def nats(
        self,
        sequences: Sequence[Sequence[int]],
        batch_size: int = 4,
        on_batch: Report | None = None,
    ) -> list[Tensor]:
        """-ln p of every token that is predicted: for each sequence (n,) float64 on the CPU.

        n is the number of tokens less one for each window.

        Args:
            sequences: token ids, from :meth:`encode`.
            batch_size: windows read at once; logits take batch_size * context * vocabulary floats.
            on_batch: called after each batch with the number of windows read, and of all windows.
        """
        windows = [
            (number, start)
            for number, ids in enumerate(sequences)
            for start in range(0, len(ids), self.context)
            if len(ids) - start > 1
        ]
        pieces: list[list[Tensor]] = [[] for _ in sequences]
        for batch in _batches(windows, batch_size):
            rows = [list(sequences[i][start : start + self.context]) for i, start in batch]
            for (number, _), nats in zip(batch, self._read(rows), strict=True):
                pieces[number].append(nats)
            if on_batch is not None:
                on_batch(sum(map(len, pieces)), len(windows))
        return [torch.cat(p) if p else torch.empty(0, dtype=torch.float64) for p in pieces]

    @torch.no_grad()
    def features(self, sequences: Sequence[Sequence[int]], batch_size: int = 4) -> Tensor:
        """The last hidden state at each sequence's last token, (N, hidden) float32 on the CPU.

        A sequence is cut at the judge's context. One without a token has no last token: its
        features are zeros. These are the features of MAUVE (Pillutla et al. 2021, arXiv
        2102.01454).
        """
        found = []
        for batch in _batches([list(ids[: self.context]) for ids in sequences], batch_size):
            tokens, lengths, attention = self._padded([ids or [0] for ids in batch])
            out = self.model(tokens, attention_mask=attention, output_hidden_states=True)
            last = out.hidden_states[-1][torch.arange(len(batch)), lengths - 1]  # (B, hidden)
            last[torch.tensor([not ids for ids in batch])] = 0.0
            found.append(last.float().cpu())
        return torch.cat(found)

    def _read(self, rows: list[list[int]]) -> Iterator[Tensor]:
        tokens, lengths, attention = self._padded(rows)
        logits = self.model(tokens, attention_mask=attention).logits  # (B, L, V)
        for row, scores, length in zip(tokens, logits, lengths.tolist(), strict=True):
            # A sequence at a time: the float32 copy of all logits would double the memory.
            predicted = scores[: length - 1].float()
            yield F.cross_entropy(predicted, row[1:length], reduction="none").double().cpu()

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L) padded on the right, lengths (B,), and attention mask (B, L)."""
        lengths = torch.tensor([len(row) for row in rows])
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        attention = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        device = self.model.device
        return padded.to(device), lengths.to(device), attention.to(device)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
