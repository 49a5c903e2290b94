"""Entropy-bounded sampling of the uniform graph: uncertain positions are noised again.

The sequence is a canvas of random tokens. A step calls the network once, draws a token at every
position that is not known, and accepts those of least entropy by the rule of "entropy_bound"
(:mod:`sedd_fast.sampling.acceptance`). All others become random tokens again. A sequence is done
when all its positions are accepted in one step; the last step accepts what is left.

The noise level passed to the network is that at which the share of positions that are not known or
accepted is expected to be noised. DiffusionGemma, which renoises by this rule, reads no noise
level; it stops where its likeliest tokens stay the same and their entropies are small, and returns
these.

Source: Ben-Hamu et al. 2025 (arXiv 2505.24857), section 4, for the bound.
"""

import torch
from torch import Tensor

from sedd_fast.ops._uniforms import uniforms
from sedd_fast.process.noise import trained_range
from sedd_fast.sampling.acceptance import CERTAINTY, accepted
from sedd_fast.sampling.levels import levels_of, time_of_share
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.sampling.sampler import Sampler


class CanvasSampler(Sampler):
    """ "entropy_bound" on the uniform graph."""

    def __init__(self, process: ReverseProcess, x: Tensor) -> None:
        config = process.config
        assert config.steps is not None  # SamplerConfig.check_graph
        self.text = process.text_of(x)
        self.lengths = self.text.sum(-1).clamp(min=1)
        self.drawn = self.text & ~process.known_of(x)
        self.noised = self.drawn.clone()  # positions that are neither known nor accepted
        self.trained = trained_range(process.noise, config.eps)
        super().__init__(process, config.steps)

    def step(self, i: int, x: Tensor) -> tuple[Tensor, float] | None:
        """The tokens (B, L) after step i, from those before, and the time reached."""
        process, config = self.process, self.process.config
        row = self.noised.any(-1).nonzero().squeeze(-1)  # (R,) sequences that are not done
        if not len(row):
            return None
        u = uniforms(x, None, process.generator)[row]
        sigma = levels_of(self.noised.sum(-1)[row] / self.lengths[row], self.trained)
        eligible = self.drawn[row]
        token, certainty = process.denoise(
            x[row], sigma, eligible, u if config.temperature else None, row,
            CERTAINTY[config.method],
        )  # fmt: skip
        due = eligible.sum(-1) if i == self.steps - 1 else torch.ones_like(row)
        keep = accepted(certainty, eligible, due, config)
        noise = (u[..., 0] * process.graph.vocab_size).long()  # u[..., 0] draws no token
        after = torch.where(keep, token, torch.where(eligible, noise, x[row]))
        self.noised[row] = eligible & ~keep
        left = (self.noised.sum(-1) / self.lengths).max()
        return x.index_copy(0, row, after), time_of_share(left, process.noise)
