"""The likelihood of a continuation given its context, and whether greedy decoding gives it.

-log p(continuation | context) is bounded from above by noising the continuation alone
(``loss_mask`` of :func:`sedd_fast.likelihood_bound`). The random numbers of a bound depend on the
seed and on the context, and those of a position on its place: continuations of one context are
compared with common random numbers, and bounds under different contexts are independent.

Source: Nie et al. 2025 (arXiv 2502.09992), appendix B.5 (likelihood by Monte Carlo) and the
evaluation code published with it (greedy decoding of a suffix).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sedd_fast.evaluate import likelihood_bound
from sedd_fast.evaluate.result import LikelihoodBound
from sedd_fast.models.hugging_face import MaskedLanguageModel
from sedd_fast.models.interface import evaluating
from sedd_fast.names import Mode, Times
from sedd_fast.ops._arguments import check_count
from sedd_fast.sampling.config import SamplerConfig
from sedd_fast.sampling.methods import make_sampler
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.text.drawing import check_seed
from sedd_fast.text.network import Network


@dataclass(frozen=True)
class Scorer:
    """Bounds the likelihood of continuations.

    Args:
        network: a diffusion network with its tokenizer.
        samples: noise levels of each continuation.
        times: how they are drawn, as in :func:`sedd_fast.likelihood_bound`.
        batch_size: sequences at a time; results do not depend on it, up to rounding.
        max_length: most tokens of context and continuation.
        seed: random seed for the noise.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.

    Example:
        >>> scorer = Scorer(load_network("runs/book", None, "auto", "float32"))
        >>> bound = scorer.bound(tokenizer.encode("The cat"), tokenizer.encode(" sat"))
        >>> print(-bound.total_nats)
    """

    network: Network
    samples: int = 128
    times: Times = "balanced"
    batch_size: int = 16
    max_length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("batch_size", 1), ("max_length", 1)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), least))
        check_seed(self.seed)

    @property
    def mode(self) -> Mode:
        """The mode of the bound: "normalised" for the absorbing graph, "exact" for the uniform."""
        return "exact" if self.network.model.graph.mask_index is None else "normalised"

    def bound(self, context: Sequence[int], continuation: Sequence[int]) -> LikelihoodBound:
        """The bound on -log p(continuation | context) in nats, one sequence.

        Of a context that leaves no room for the continuation the start is left out. One token
        under a network that reads no noise level needs no more than two samples: all are equal.

        Args:
            context: token ids, perhaps none.
            continuation: token ids, at least one.

        Raises:
            ValueError: a continuation without a token, or longer than ``max_length``.
        """
        given = self.shortened(context, len(continuation))
        network, device = self.network.model, self.network.device
        x_0 = torch.tensor([[*given, *continuation]], device=device)
        same = len(continuation) == 1 and _reads_no_noise(self.network)
        least = 4 if self.times == "antithetic" else 2
        with self.network.autocast():
            return likelihood_bound(
                network, x_0, network.graph, network.noise,
                min(least, self.samples) if same else self.samples, self.mode,
                torch.Generator().manual_seed(seed_of(self.seed, context)), self.batch_size,
                times=self.times, loss_mask=torch.arange(x_0.shape[1], device=device)[None]
                >= len(given),
            )  # fmt: skip

    def bound_of_text(self, tokens: Sequence[int]) -> float:
        """The sum of the bounds of a text's windows of ``max_length`` tokens, in nats.

        Each window is read on its own, with random numbers that depend on its tokens.
        """
        total = 0.0
        for start in range(0, len(tokens), self.max_length):
            window = tokens[start : start + self.max_length]
            scorer = replace(self, seed=seed_of(self.seed, window))
            total += scorer.bound([], window).total_nats
        return total

    @torch.no_grad()
    def is_greedy(self, context: Sequence[int], continuation: Sequence[int]) -> bool:
        """Whether greedy decoding gives the continuation, the surest position first.

        All positions start as masks. In each step the likeliest token of the position whose
        likeliest token has the highest probability replaces its mask.

        Raises:
            ValueError: the graph has no mask; else as :meth:`bound`.
        """
        given = self.shortened(context, len(continuation))
        network, device = self.network.model, self.network.device
        mask = network.graph.mask_index
        if mask is None:
            raise ValueError(
                "check_greedy: greedy decoding is defined for the absorbing graph, got "
                f"{network.graph}; leave it out"
            )
        length = len(given) + len(continuation)
        x = torch.full((1, length), mask, device=device)
        x[0, : len(given)] = torch.tensor(given, device=device)
        wanted = torch.tensor([*given, *continuation], device=device)
        config = SamplerConfig("confidence", None, temperature=0)
        process = ReverseProcess(network, network.graph, network.noise, config)
        process.begin(x)
        sampler = make_sampler(process, x)
        with evaluating(network), self.network.autocast():
            for i in range(sampler.steps):
                made = sampler.step(i, x)
                assert made is not None
                x = made[0]
                if bool(((x != mask) & (x != wanted)).any()):
                    return False
        return True

    def shortened(self, context: Sequence[int], room: int) -> Sequence[int]:
        """The end of a context that leaves room for so many tokens."""
        if not 1 <= room <= self.max_length:
            raise ValueError(
                f"max_length: expected 1 to {self.max_length} tokens after the context, got "
                f"{room}; raise max_length, or shorten the text"
            )
        return context[max(0, len(context) + room - self.max_length) :]


def seed_of(seed: int, *parts: Sequence[int]) -> int:
    """A seed, 0 .. 2^63 - 1, that depends on a seed and on numbers."""
    text = repr((seed, *map(list, parts))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _reads_no_noise(network: Network) -> bool:
    model = network.model
    return isinstance(model, MaskedLanguageModel) and not model.takes_sigma
