"""The score network of SEDD: a bidirectional transformer whose blocks are modulated by the noise.

Tokens and the total noise sigma go in, log scores come out (Lou, Meng, Ermon 2024, arXiv
2310.16834, appendix C). :mod:`sedd_fast.transformer` has its blocks. Names of parameters and their
order are those of the published checkpoints: EMA weights are stored by order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedd_fast import checkpoint
from sedd_fast.backends.coefficients import log_output_scale
from sedd_fast.graphs import Graph, make_graph
from sedd_fast.noise import Noise, make_noise
from sedd_fast.ops import (
    TouchedRows,
    linear_reverse_step,
    linear_score_entropy,
    touched_rows,
)
from sedd_fast.transformer import (
    DDiTBlock,
    DDitFinalLayer,
    EmbeddingLayer,
    Rotary,
    TimestepEmbedder,
    at_least_float32,
)


@dataclass(frozen=True)
class SEDDConfig:
    """Everything that fixes the network and the process it was trained for.

    `vocab_size` counts real tokens; the absorbing graph adds its mask by itself. `length` is the
    training length: rotary positions let the network run at any other. `scale_by_sigma` subtracts
    ln(expm1(sigma)) + ln(vocab_size) from the output and is defined for the absorbing graph only.
    """

    vocab_size: int
    graph: str = "absorbing"  # or "uniform"
    noise: str = "loglinear"  # or "geometric"
    noise_eps: float = 1e-3
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    hidden_size: int = 768
    cond_dim: int = 128
    length: int = 1024
    n_blocks: int = 12
    n_heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.1
    scale_by_sigma: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a positive int, got {value!r}")
        if self.graph not in ("absorbing", "uniform"):
            raise ValueError(f"graph must be 'absorbing' or 'uniform', got {self.graph!r}")
        if self.noise not in ("loglinear", "geometric"):
            raise ValueError(f"noise must be 'loglinear' or 'geometric', got {self.noise!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        self._check_heads()
        if self.scale_by_sigma and self.graph != "absorbing":
            raise ValueError(
                "scale_by_sigma=True is defined for graph='absorbing' only (the score of a masked "
                f"token goes as 1/expm1(sigma)); for graph={self.graph!r} set scale_by_sigma=False"
            )

    def _check_heads(self) -> None:
        pairs = 2 * self.n_heads
        if self.hidden_size % pairs:
            raise ValueError(
                "hidden_size must be n_heads times an even head width (rotary positions turn pairs)"
                f", got hidden_size={self.hidden_size}, n_heads={self.n_heads}; take a multiple of "
                f"{pairs}, such as {pairs * max(1, round(self.hidden_size / pairs))}"
            )


class SEDD(nn.Module):
    """Log scores of every state at every position.

        log_score = model(indices, sigma)      # (B, L) int64, (B,) -> (B, L, dim) fp32
        loss = model(x_t, sigma, x_0, weight, "sum")            # never builds the log scores
        x_s = model(x_t, sigma, method="analytic", dsigma=d)    # nor does this

    log_score[b, i, y] estimates ln p_t(x with x_i := y) - ln p_t(x); it is 0 at y = indices[b, i].
    With f the output of the head, it is f for the uniform graph and
    f - ln(expm1(sigma)) - ln(vocab_size) for the absorbing one (`scale_by_sigma`; appendix C.2).
    A fresh network gives f = 0: a loss of about L * ln(vocab_size) nats per sequence.

    The network may run under torch.autocast; log scores come out in fp32 (fp64 in a double model).

        model = SEDD(SEDDConfig(vocab_size=96, hidden_size=256, n_blocks=6, n_heads=4, length=256))
        model = SEDD.from_pretrained("louaaron/sedd-small")
    """

    #: As `sedd_fast.checkpoint` names this kind of network.
    kind: ClassVar[str] = "sedd"

    def __init__(self, config: SEDDConfig) -> None:
        if not isinstance(config, SEDDConfig):
            raise TypeError(
                f"config must be a SEDDConfig, got {type(config).__name__}; settings of the "
                "original: SEDDConfig(**sedd_fast.checkpoint.config_from_original(settings))"
            )
        super().__init__()
        self.config = config
        dim = self.graph.dim
        self.vocab_embed = EmbeddingLayer(config.hidden_size, dim)
        self.sigma_map = TimestepEmbedder(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_size // config.n_heads)
        self.blocks = nn.ModuleList([DDiTBlock(config) for _ in range(config.n_blocks)])
        self.output_layer = DDitFinalLayer(config, dim)

    @property
    def graph(self) -> Graph:
        """The graph the network was made for: `Absorbing` or `Uniform`."""
        return make_graph(self.config.graph, self.config.vocab_size)

    @property
    def noise(self) -> Noise:
        """The noise schedule the network was made for."""
        c = self.config
        return make_noise(c.noise, eps=c.noise_eps, sigma_min=c.sigma_min, sigma_max=c.sigma_max)

    @property
    def fuses_head(self) -> bool:
        """Whether `forward` takes x_0 (a loss) and method (a step); not where it was overridden."""
        return type(self).forward is SEDD.forward

    def forward(
        self,
        indices: Tensor,
        sigma: Tensor,
        x_0: Tensor | None = None,
        row_weight: Tensor | None = None,
        reduction: str = "none",
        *,
        method: str | None = None,
        dsigma: Tensor | float | None = None,
        u: Tensor | None = None,
        rows: TouchedRows | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Tensor:
        """Log scores (B, L, dim); or, through the fused head, a loss or the next tokens.

        The head is in here, not in the caller, so that wrappers of the module (DDP, FSDP2,
        torch.compile, activation checkpointing) see its parameters used in its own forward.

        Args:
            indices: (B, L) int64, tokens now.
            sigma: (B,), total noise.
            x_0: (B, L) clean tokens: returns `sedd_fast.linear_score_entropy` with
                `row_weight` and `reduction`, (B, L) or ().
            method: returns `sedd_fast.linear_reverse_step` with `dsigma`, `u`, `temperature` and
                `top_p`, (B, L) int64.
            rows: the positions that the head is needed at; all that noise touched if None.
        """
        if x_0 is None and method is None:
            return self._log_score(self.features(indices, sigma), indices, sigma)
        if x_0 is not None and method is not None:
            raise ValueError("x_0 (a loss) and method (a reverse step) were both given; pass one")
        graph, head, scaled = self.graph, self.output_layer.linear, self.config.scale_by_sigma
        if rows is None and not torch.compiler.is_compiling():
            rows = touched_rows(indices, graph, row_weight)  # on its way while the body runs
        hidden = self.features(indices, sigma)
        if x_0 is not None:
            return linear_score_entropy(
                hidden, head.weight, head.bias, sigma, indices, x_0, graph, scaled, row_weight,
                reduction, rows,
            )  # fmt: skip
        assert method is not None
        return linear_reverse_step(
            hidden, head.weight, head.bias, indices, sigma, dsigma, graph, method, scaled, u=u,
            rows=rows, temperature=temperature, top_p=top_p,
        )  # fmt: skip

    def _log_score(self, hidden: Tensor, indices: Tensor, sigma: Tensor) -> Tensor:
        # (B * L, dim). In place from here on: no derivative needs the head's own output, and a copy
        # is B * L * dim numbers. Two dimensions, since autograd copies when a view is written to,
        # and a linear layer returns one for three.
        log_score = at_least_float32(self.output_layer.linear(hidden.flatten(0, 1)))
        if self.config.scale_by_sigma:
            log_score.sub_(self._log_scale(indices, sigma).to(log_score.dtype))
        log_score.scatter_(-1, indices.reshape(-1, 1), 0.0)
        return log_score.view(*indices.shape, log_score.shape[-1])

    def _log_scale(self, indices: Tensor, sigma: Tensor) -> Tensor:
        """ln(expm1(sigma)) + ln(vocab_size) for each position, (B * L, 1)."""
        scale = log_output_scale(at_least_float32(sigma), self.config.vocab_size)
        return scale.reshape(-1, 1).expand(indices.shape).reshape(-1, 1)

    def features(self, indices: Tensor, sigma: Tensor) -> Tensor:
        """What the head `output_layer.linear` is applied to: (B, L), (B,) -> (B, L, hidden_size).

        sigma may also be (B, 1) or a scalar tensor. Raises TypeError or ValueError for a wrong
        dtype, shape or device, and on the CPU for a token outside [0, dim).
        """
        sigma = _check_input(indices, sigma)
        x = self._embed(indices)
        c = F.silu(self.sigma_map(sigma))  # (B, cond_dim)
        rotary = self.rotary_emb(indices.shape[1])
        for block in self.blocks:
            x = block(x, c, rotary)
        return self.output_layer.features(x, c)

    def _embed(self, indices: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.vocab_embed(indices)
        try:
            return self.vocab_embed(indices)
        except IndexError:
            raise ValueError(
                f"indices must lie in [0, {self.graph.dim}), got {int(indices.min())} to "
                f"{int(indices.max())}; was the text encoded with the tokenizer of this model?"
            ) from None

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path, *, device: torch.device | str = "cpu", **hub: Any
    ) -> SEDD:
        """A trained network, in evaluation mode, from a directory or the Hugging Face Hub.

        A directory holds config.json with model.safetensors or pytorch_model.bin, or is a run
        directory of the original trainer (its EMA weights are taken). Any other name is a Hub
        repository; `hub` goes to `huggingface_hub.hf_hub_download`: revision, cache_dir, token,
        force_download, local_files_only. Raises FileNotFoundError where nothing is found, and
        ValueError for unreadable files, incomplete settings, and unknown or missing weights.
        """
        saved = checkpoint.read(name_or_dir, cls.kind, **hub)
        model = cls(SEDDConfig(**saved.config))
        checkpoint.restore(model, saved)
        return model.to(device).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors, in the original's format and names."""
        checkpoint.write(directory, self.config, self.state_dict(), self.kind)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; returns its address there.

        Options: token, private, revision, create_pr, commit_message.
        """
        return checkpoint.push(self, repo_id, **options)


def _check_input(indices: Tensor, sigma: Tensor) -> Tensor:
    """Check what the caller gave, and return sigma as (B,)."""
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64 token ids, got {indices.dtype}; call .long()")
    if indices.dim() != 2:
        raise ValueError(
            f"indices must have shape (B, L), got {tuple(indices.shape)}; one sequence is "
            "indices[None]"
        )
    if not sigma.is_floating_point():
        raise TypeError(f"sigma must be floating point, got {sigma.dtype}; call .float()")
    if sigma.device != indices.device:
        raise ValueError(f"sigma is on {sigma.device} but indices on {indices.device}; move one")
    batch = indices.shape[0]
    if sigma.shape not in ((), (batch,), (batch, 1)):
        raise ValueError(
            f"sigma must have shape ({batch},), one total noise per sequence of indices, got "
            f"{tuple(sigma.shape)}"
        )
    return sigma.reshape(-1).expand(batch)
