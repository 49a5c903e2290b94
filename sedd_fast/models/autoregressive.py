"""The baseline of equal size: SEDD's transformer with a causal mask, predicting the next token.

    model = Autoregressive(SEDDConfig(vocab_size=96, hidden_size=256, n_blocks=6, n_heads=4))
    logits = model(tokens)                        # (B, L) -> (B, L, V): token i given those before
    nats = model(tokens, NextTokenRequest())      # (B, L): -ln p of each; the logits never exist
    tokens = generate(model, (4, 256), top_p=0.95)

The blocks and the embedding are SEDD's (the embedding's last row, SEDD's mask, stands for the start
of a text); the head is SEDD's without the mask's row. The noise embedding stays and always gets
noise 0, so that the number of parameters is SEDD's; its output is then a learnt bias of each block.
The trainer trains it with `model.kind=ar`; `model.type` is "ar" in its config.json.

`generate` caches the keys and values of every block: a token costs one position of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedd_fast.backends.categorical import inverse_cdf
from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.models import overrides
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.interface import device_of, evaluating
from sedd_fast.models.layers import Attend
from sedd_fast.models.transformer import Transformer
from sedd_fast.names import NetworkKind
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import linear_cross_entropy
from sedd_fast.ops._uniforms import Generators, for_rows, uniform

OnToken = Callable[[int, int], object]


@dataclass(frozen=True)
class NextTokenRequest:
    """-ln p of every token given those before it: what `NextTokenLoss` asks a network for.

    Args:
        row_weight: (B, L), factor of every position; None: 1.
        reduction: "none" gives (B, L) nats, "sum" ().

    The answer is float64 for a float64 network, else float32.
    """

    row_weight: Tensor | None = None
    reduction: Literal["none", "sum"] = "none"

    def __call__(self, hidden: Tensor, linear: nn.Linear, tokens: Tensor) -> Tensor:
        """The answer, from hidden states (B, L, H) and the head that makes logits of them."""
        return linear_cross_entropy(
            hidden, linear.weight, linear.bias, tokens, self.row_weight, reduction=self.reduction
        )

    def of_logits(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The same answer from logits (B, L, V)."""
        nats = F.cross_entropy(at_least_fp32(logits).transpose(1, 2), tokens, reduction="none")
        weighted = nats if self.row_weight is None else nats * self.row_weight
        return arguments.reduce(weighted, self.reduction).to(nats.dtype)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Autoregressive(Transformer):
    """Logits of every token given those before it: (B, L) int64 -> (B, L, vocab_size) fp32.

    Args:
        config: SEDD's; what concerns noise is not read. `length` is the training length, any
            other works.
    """

    kind: ClassVar[NetworkKind] = "ar"

    @staticmethod
    def states(config: SEDDConfig) -> tuple[int, int]:
        return config.vocab_size + 1, config.vocab_size

    @property
    def start(self) -> int:
        """The token that stands before the first one."""
        return self.config.vocab_size

    @property
    def head_requests(self) -> tuple[type[NextTokenRequest], ...]:
        """What the network computes without logits; nothing where it has been changed, as SEDD."""
        usable = self._fused_linear() is not None
        own = overrides.forwards_requests(self, Autoregressive.forward)
        return (NextTokenRequest,) if usable and own else ()

    def forward(self, tokens: Tensor, head: NextTokenRequest | None = None) -> Tensor:
        """Logits, or of a request what it asks for."""
        arguments.check_tokens("tokens", tokens)
        before = F.pad(tokens, (1, -1), value=self.start)  # (B, L): the token left of each
        attend: list[Attend] = [_causal] * len(self.blocks)
        rotary = self.rotary_emb(tokens.shape[1])
        if head is None:
            return self.read(before, rotary, attend)
        linear = self._fused_linear()
        if linear is None or not overrides.is_dense(linear):
            return head.of_logits(self.read(before, rotary, attend), tokens)
        hidden = self.output_layer.features(*self._body(before, rotary, attend))
        return head(hidden, linear, tokens)

    def read(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: list[Attend]) -> Tensor:
        """Logits after each of the tokens x (B, L) at the positions of `rotary`."""
        return at_least_fp32(self.output_layer(*self._body(x, rotary, attend)))

    def _body(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: list[Attend]
    ) -> tuple[Tensor, Tensor]:
        """What the output layer takes: (B, L, hidden_size), and the noise embedding."""
        # One noise embedding for all sequences, (1, cond_dim).
        c = F.silu(self.sigma_map(torch.zeros(1, device=x.device)))
        hidden = self.vocab_embed(x)
        for block, how in zip(self.blocks, attend, strict=True):
            hidden = block(hidden, c, rotary, how)
        return hidden, c


overrides.record(Autoregressive, "read")


class _Cache:
    """A block's keys and values so far, and attention of the newest position to them all."""

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self.kept: Tensor | None = None  # (2, B, heads, L, d)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kept is None:
            batch, heads, _, width = k.shape
            self.kept = k.new_empty(2, batch, heads, self.length, width)
        self.kept[:, :, :, self.used : self.used + 1] = torch.stack((k, v))
        self.used += 1
        keys, values = self.kept[:, :, :, : self.used]
        return F.scaled_dot_product_attention(q, keys, values)


@torch.no_grad()
def generate(
    model: Autoregressive,
    shape: tuple[int, int],
    top_p: float = 1.0,
    temperature: float = 1.0,
    generator: Generators | None = None,
    on_token: OnToken | None = None,
) -> Tensor:
    """Draw sequences from left to right, (B, L) int64 on the model's device.

    Args:
        model: in evaluation mode while it draws.
        shape: (B, L).
        top_p: draw from the smallest set of tokens that holds this probability (nucleus sampling,
            Holtzman et al. 2020, arXiv 1904.09751); 1 draws from the model's own distribution.
        temperature: logits are divided by it; 1 leaves the model's distribution.
        generator: source of randomness, one uniform number a token; torch's own if None. One for
            each sequence, a list or :class:`RowStreams`, makes it independent of the others.
        on_token: called after each token with the number of positions drawn and of all positions.

    Raises:
        TypeError, ValueError: top_p outside (0, 1], temperature not positive and finite, a shape
            that is not (B, L).
    """
    batch, length = shape = arguments.check_shape(shape, 1)
    arguments.check_shares(temperature, top_p)
    device = device_of(model)
    source = for_rows(generator, batch)
    tokens = torch.empty(batch, length, dtype=torch.int64, device=device)
    newest = torch.full((batch, 1), model.start, device=device)
    cos, sin = model.rotary_emb(length)
    caches: list[Attend] = [_Cache(length) for _ in model.blocks]
    with evaluating(model):
        for i in range(length):
            logits = model.read(newest, (cos[i : i + 1], sin[i : i + 1]), caches)[:, 0]
            u = uniform((batch, 1), device, source)
            newest = draw_token(logits / temperature, top_p, u)
            tokens[:, i : i + 1] = newest
            if on_token is not None:
                on_token(i + 1, length)
    return tokens


def draw_token(logits: Tensor, top_p: float, u: Tensor) -> Tensor:
    """A token of each row by inverting its cumulative sum: (B, V), u (B, 1) in [0, 1) -> (B, 1)."""
    probs = logits.double().softmax(-1)
    order: Tensor | None = None
    if top_p < 1:
        probs, order = probs.sort(-1, descending=True)
        # A token stays if those before it hold less than top_p: the first always does.
        probs = probs * (probs.cumsum(-1) - probs < top_p)
    drawn = inverse_cdf(probs.cumsum(-1), u.squeeze(-1))[:, None]
    return drawn if order is None else order.gather(-1, drawn)
