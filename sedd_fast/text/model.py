"""`load` and :class:`TextModel`: sample, infill and bits per token of texts in a few lines.

    model = load("runs/book")
    print(model.infill("The [8] fox [12] dog."))
    for text in model.sample(3, steps=256, seed=1):
        print(text)
    print(model.bits_per_token("The quick brown fox jumps over the lazy dog."))

The command line calls the same functions: the same seed gives the same samples and figures.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, overload

import torch
from typing_extensions import Unpack

from sedd_fast.data.chat_templates import Message
from sedd_fast.data.prompts import Sample, decode
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.evaluate.wrapping import wrap as wrap_text
from sedd_fast.models.networks import AnyNetwork
from sedd_fast.names import ADAPTERS, AdapterName, Mode, Times, Wrap
from sedd_fast.ops._arguments import check_choice, check_count
from sedd_fast.progress import Report
from sedd_fast.sampling import SamplerConfig
from sedd_fast.text.bound import TextBound, bound_text
from sedd_fast.text.draw_options import DrawOptions
from sedd_fast.text.drawing import check_seed, draw, new_seed
from sedd_fast.text.network import Baseline, Network, Precision, load_any
from sedd_fast.text.requests import Request, from_prompt, from_record, from_row


@dataclass(frozen=True, repr=False)
class TextModel:
    """A trained network with its tokenizer: texts in, texts out. :func:`load` makes one.

    Attributes:
        network: network, tokenizer, device and precision.
    """

    network: Network | Baseline

    @property
    def model(self) -> AnyNetwork:
        """The network in evaluation mode, for :func:`sedd_fast.sample` and the like."""
        return self.network.model

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of a text, and a text of tokens."""
        return self.network.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.network.device

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"TextModel({self.network.source!r}: {type(self.model).__name__}, {parameters:,} "
            f"parameters, {self.tokenizer.vocab_size:,} tokens, length {self.model.config.length}, "
            f"{self.network.precision} on {self.device})"
        )

    def sample(
        self,
        n: int = 1,
        *,
        prompt: str = "",
        length: int | None = None,
        **options: Unpack[DrawOptions],
    ) -> list[str]:
        """Draw texts, as `sedd-fast sample` does.

        Args:
            n: number of texts. Text k depends on the seed and k alone.
            prompt: every text starts with it.
            length: tokens of a text, `prompt` included; None: as trained.
            options: those of :class:`DrawOptions`.

        Returns:
            n texts, each cut at its first end-of-text, which is left out.

        Raises:
            TypeError, ValueError: an option is unknown, of the wrong type or out of range; the
                prompt does not fit, holds a character that the tokenizer lacks, or the network is
                autoregressive and cannot take one.

        Example:
            >>> for text in load("runs/book").sample(3, prompt="The ", steps=256, seed=1):
            ...     print(text)
        """
        request = from_prompt(prompt, self.tokenizer, self._length(length))
        return self._draw(request, n, options)

    @overload
    def infill(
        self,
        template: str = "",
        *,
        prefix: str = "",
        middle: Sequence[tuple[str, int]] = (),
        suffix: str = "",
        length: int | None = None,
        n: None = None,
        **options: Unpack[DrawOptions],
    ) -> str: ...

    @overload
    def infill(
        self,
        template: str = "",
        *,
        prefix: str = "",
        middle: Sequence[tuple[str, int]] = (),
        suffix: str = "",
        length: int | None = None,
        n: int,
        **options: Unpack[DrawOptions],
    ) -> list[str]: ...

    def infill(
        self,
        template: str = "",
        *,
        prefix: str = "",
        middle: Sequence[tuple[str, int]] = (),
        suffix: str = "",
        length: int | None = None,
        n: int | None = None,
        **options: Unpack[DrawOptions],
    ) -> str | list[str]:
        r"""Fill the gaps around given text, as `sedd-fast infill` does.

        Given text is exact in the result. Give a template, or any of prefix, middle and suffix.

        Args:
            template: text with gaps: ``[8]`` is a gap of 8 tokens. A literal bracket is written
                ``\[``. It gives all the text and its length.
            prefix: text at the start.
            middle: texts within, each with the number of its first token, from 0.
            suffix: text at the end.
            length: tokens of the whole text, for prefix, middle and suffix; None: as trained.
            n: number of texts; None: one, which is returned by itself.
            options: those of :class:`DrawOptions`.

        Returns:
            A text; with a number n, a list of n texts. Each is cut at the first end-of-text after
            all given text.

        Raises:
            TypeError, ValueError: as :meth:`sample`; nothing is given, a template without a gap or
                with a stray bracket, texts that overlap or do not fit.

        Example:
            >>> load("runs/book").infill("The [8] fox [12] dog.", seed=1)
        """
        record: dict[str, Any] = {"template": template, "prefix": prefix, "suffix": suffix}
        record["middle"] = _as_lists(middle)
        given = {name: value for name, value in record.items() if value}
        if not given:
            raise ValueError(
                "infill: nothing is given; give a template, prefix, middle or suffix, or call "
                "sample"
            )
        if length is not None:
            given["length"] = length
        request = from_record(given, self.tokenizer, self._length(None))
        texts = self._draw(request, 1 if n is None else n, options)
        return texts[0] if n is None else texts

    def complete(
        self,
        prompts: Sequence[str | Sequence[Message]],
        *,
        completion_length: int | None = None,
        **options: Unpack[DrawOptions],
    ) -> list[str]:
        """Complete prompts, as `sedd-fast infill --from` does for rows with a prompt.

        A network that was trained on prompts and completions (docs/finetuning.md) answers them.

        Args:
            prompts: texts, or chats: lists of messages such as
                ``{"role": "user", "content": "Hi"}``, written by the tokenizer's chat template.
            completion_length: tokens of the gap that is filled, in which the completion ends; None:
                that of the network's training on completions, else up to the length of training.
            options: those of :class:`DrawOptions`.

        Returns:
            A completion of each prompt, without the prompt.

        Raises:
            TypeError, ValueError: as :meth:`sample`; a prompt that leaves no room, or a tokenizer
                without chat template.

        Example:
            >>> load("runs/dates").complete(["14 July 1989 is "])
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise TypeError(
                f"prompts must be a list of texts or of chats, got {type(prompts).__name__}; "
                "for one prompt: complete([prompt])"
            )
        gap = getattr(self.network, "gap", None)
        if completion_length is not None:
            gap = check_count("completion_length", completion_length)
        requests = []
        for number, prompt in enumerate(prompts):
            row = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
            try:
                requests.append(from_row(row, self.tokenizer, self._length(None), gap))
            except ValueError as error:
                raise ValueError(f"prompts[{number}]: {error}") from error
        mask = getattr(getattr(self.model, "graph", None), "mask_index", None)
        return [
            decode(sample.tokens[request.prompt_length :], self.tokenizer, mask)
            for request, sample in self._drawn(requests, 1, options)
        ]

    def bits_per_token(
        self,
        text: str | Sequence[str],
        *,
        mode: Mode = "exact",
        samples: int = 32,
        times: Times = "balanced",
        wrap: Wrap = "sedd",
        length: int | None = None,
        max_blocks: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        progress: bool | Report = False,
    ) -> TextBound:
        """Bound the likelihood of a text of any length, as `sedd-fast eval` does.

        The text is cut into blocks, each read on its own. -log p of every block is bounded from
        above by Monte Carlo over noise levels; for an autoregressive network it is computed
        exactly. A character that a vocabulary of characters lacks counts as an unknown one.

        Args:
            text: a text, or several documents; end-of-text follows each.
            mode: the bound: "exact", "normalised" or "paper", as in
                :func:`sedd_fast.likelihood_bound`.
            samples: noise levels of each block; the error falls as 1 / sqrt(samples).
            times: how the noise levels and masks of a block are drawn.
            wrap: how the text is cut. "sedd": documents are joined and cut, and tokens at the end
                that fill no block are left out (``text.left_over`` of the result). "separate":
                every document by itself, and nothing is left out. "mdlm": as "sedd", with
                end-of-text at both ends of a block.
            length: tokens of a block; None: as trained. A shorter text is one shorter block.
            max_blocks: number of blocks to evaluate, evenly spaced over the text; None: all.
            seed: random seed for the noise, 0 .. 2^64 - 1.
            batch_size: blocks at a time; the noise does not depend on it.
            progress: True: show the number of blocks on stderr. A function: it is called with the
                number of blocks done and their total.

        Returns:
            Bits per token with their standard error, and bits per character.

        Raises:
            TypeError, ValueError: an empty text, or an argument of the wrong type or out of range.

        Example:
            >>> found = load("runs/book").bits_per_token(open("other.txt").read())
            >>> print(f"{found.value:.3f} +- {found.stderr:.3f} bits per token")
        """
        documents = [text] if isinstance(text, str) else text
        if not isinstance(documents, Sequence) or not all(isinstance(d, str) for d in documents):
            raise TypeError(
                f"text must be a text or a list of texts, got {type(text).__name__}; of a file: "
                "Path(file).read_text(encoding='utf-8')"
            )
        if not any(documents):
            raise ValueError("text: it is empty; give at least one character")
        blocks = wrap_text(documents, self.tokenizer, self._length(length), wrap, "text")
        return bound_text(
            self.network, blocks, mode, samples, times, max_blocks, seed, batch_size, progress
        )

    def _length(self, length: int | None) -> int:
        if length is None:
            return self.model.config.length
        return check_count("length", length)

    def _draw(self, request: Request, n: int, options: DrawOptions) -> list[str]:
        return [sample.text for _, sample in self._drawn([request], n, options)]

    def _drawn(
        self, requests: Sequence[Request], n: int, options: DrawOptions
    ) -> Iterator[tuple[Request, Sample]]:
        sampler: dict[str, Any] = {**options}
        known = [*DrawOptions.__annotations__]
        for name in sampler.keys() - known:
            close = " or ".join(difflib.get_close_matches(name, known))
            hint = f"did you mean {close}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"unknown option {name!r}; {hint}")
        seed, batch_size = sampler.pop("seed", None), sampler.pop("batch_size", 16)
        more = {name: sampler.pop(name, False) for name in ("keep_after_eot", "progress")}
        return draw(
            requests,
            self.network,
            SamplerConfig(**sampler),
            check_count("n", n),
            new_seed() if seed is None else check_seed(seed),
            check_count("batch_size", batch_size),
            **more,
        )


def _as_lists(pairs: Any) -> Any:
    """The pairs of `middle` as in JSON; what is no pair is left for `from_record` to refuse."""
    if not isinstance(pairs, Iterable):
        return pairs
    return [
        [*pair] if isinstance(pair, Iterable) and not isinstance(pair, str) else pair
        for pair in pairs
    ]


def load(
    name: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: Precision = "float32",
    adapter: AdapterName | None = None,
    trust_remote_code: bool = False,
) -> TextModel:
    """Read a trained model with its tokenizer.

    Args:
        name: a run directory of :func:`sedd_fast.train`, a directory of weights, or a hub name,
            such as "louaaron/sedd-small". The published checkpoints use GPT-2's tokenizer. None:
            the model in the package. Also a masked language model of Hugging Face.
        tokenizer: used in place of the one beside the weights: "bytes", a file, a directory or a
            hub name.
        device: "auto" (a GPU if available), "cpu", "cuda", "cuda:1", ... On a GPU the steps of
            samplers are CUDA graphs.
        dtype: data type of the network's matrix products: "float32", "bfloat16" or "float16".
            Scores are always float32. A model of Hugging Face has its weights in this type too.
        adapter: how a model of Hugging Face is called: "llada", "dream", "mdlm" or "masked_lm";
            None: by the `model_type` of its config.json.
        trust_remote_code: run the Python code that comes with a model of Hugging Face.

    Raises:
        ValueError, FileNotFoundError: there is no such model, or the tokenizer or the device does
            not fit it; the message says what to do.

    Example:
        >>> model = load("runs/book")
        >>> print(model.infill("The [8] fox [12] dog."))
        >>> model = load("GSAI-ML/LLaDA-8B-Base", trust_remote_code=True, dtype="bfloat16")
    """
    check_choice("dtype", dtype, get_args(Precision))
    if adapter is not None:
        check_choice("adapter", adapter, ADAPTERS)
    words = None if tokenizer is None else str(tokenizer)
    source = None if name is None else str(name)
    return TextModel(load_any(source, words, str(device), dtype, adapter, trust_remote_code))
