"""The samplers that unmask first what the network is sure of, for the absorbing graph.

A step calls the network once, draws a token at every masked position from p(x_0 | x_t), keeps those
of which the network is surest (:mod:`sedd_fast.sampling.acceptance` has the rules) and leaves the
others masked. Positions that are unmasked together are drawn independently of each other, as with
every sampler. With one position a step "margin", "entropy" and "entropy_bound" choose a position by
p alone, then draw its token: samples have the distribution of the data if p is exact, whatever the
order. "confidence" and "threshold" choose it by the drawn token, which favours likely ones.
docs/decoding.md measures what is given up.

**Blocks** (semi-autoregressive decoding): with ``block_length`` the positions from the first masked
one on are cut into blocks, unmasked one after the other. Every block gets its share of the steps,
at least one.

**End-of-text**: with ``stop_token`` a sequence ends where that token is drawn after all known ones
and all before it is unmasked. All that follows becomes that token, and costs no network call.

A sequence depends on no other of its batch, but for rounding: it leaves the batch when no mask is
left. The noise level passed to the network is that at which its share of masked positions is
expected, m = 1 - exp(-sigma), within the trained range.

Source: Nie et al. 2025 (arXiv 2502.09992), section 2.4 and appendix B.4 (confidence, blocks);
Arriola et al. 2025 (arXiv 2503.09573) (blocks); Nie et al. 2024 (arXiv 2410.18514) (guidance).
"""

import torch
from torch import Tensor

from sedd_fast.ops._uniforms import uniforms
from sedd_fast.process.noise import trained_range
from sedd_fast.sampling.acceptance import CERTAINTY, accepted
from sedd_fast.sampling.levels import levels_of, time_of_share
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.sampling.sampler import Sampler


class DecodingSampler(Sampler):
    """ "confidence", "margin", "entropy", "threshold" and "entropy_bound" on masks."""

    def __init__(self, process: ReverseProcess, x: Tensor) -> None:
        config = process.config
        mask = process.graph.mask_index
        assert mask is not None  # SamplerConfig.check_graph
        self.mask, masked = mask, x == mask
        self.text = process.text_of(x)  # (B, L), not padding
        self.lengths = self.text.sum(-1).clamp(min=1)  # (B,)
        self.known = self.text & ~masked
        place = torch.arange(x.shape[1], device=x.device)
        #: Where an end-of-text ends the sequence: after its last known token.
        self.may_end = place > torch.where(self.known, place, -1).amax(-1, keepdim=True)
        first = masked.long().argmax(-1, keepdim=True)
        self.block = (place - first) // (config.block_length or x.shape[1])  # (B, L)
        #: (B, blocks) steps of every block; None: one position a step.
        self.steps_of_block = None
        steps = int(masked.sum(-1).max())
        if config.steps is not None:
            self.steps_of_block = _share_out(config.steps, self.block, masked)
            steps = min(steps, config.steps)
        self.made = torch.zeros_like(self.lengths)  # steps made in the block now
        self.current = torch.full_like(self.lengths, -1)  # that block
        self.trained = trained_range(process.noise, config.eps)
        super().__init__(process, steps)

    def step(self, i: int, x: Tensor) -> tuple[Tensor, float] | None:
        """The tokens (B, L) after step i, from those before, and the time reached."""
        process, config = self.process, self.process.config
        masked = x == self.mask
        row = masked.any(-1).nonzero().squeeze(-1)  # (R,) sequences with masks
        if not len(row):
            return None
        eligible, due = self._due(masked, row)
        u = None
        if config.temperature:
            u = uniforms(x, None, process.generator)[row]
        passed = x[row]
        if config.guidance:
            passed = torch.cat((passed, self._unconditional(x)[row]))
        share = (passed == self.mask).sum(-1) / self.lengths[row].repeat(len(passed) // len(row))
        sigma = levels_of(share, self.trained)
        token, certainty = process.denoise(
            passed, sigma, eligible, u, row, CERTAINTY[config.method]
        )
        keep = accepted(certainty, eligible, due, config)
        after = x.index_copy(0, row, torch.where(keep, token, x[row]))
        self.made[row] += 1
        if config.stop_token is not None:
            after = self._ended(after, config.stop_token)
        left = ((after == self.mask).sum(-1) / self.lengths).max()
        return after, time_of_share(left, process.noise)

    def _due(self, masked: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """The positions (R, L) of the block now, and how many of them are due at least, (R,)."""
        masked = masked[row]
        block = self.block[row]
        current = block.gather(-1, masked.long().argmax(-1, keepdim=True))  # of the first mask
        eligible = masked & (block == current)
        current = current.squeeze(-1)
        self.made[row] = torch.where(self.current[row] == current, self.made[row], 0)
        self.current[row] = current
        if self.steps_of_block is None:
            return eligible, torch.ones_like(row)
        left = self.steps_of_block[row, current] - self.made[row]
        return eligible, -(-eligible.sum(-1) // left)

    def _unconditional(self, x: Tensor) -> Tensor:
        """The sequences without their prompts."""
        prompt = self.process.unconditional
        if prompt is None:
            prompt = torch.full_like(x, self.mask)
        return torch.where(self.known, prompt, x)

    def _ended(self, x: Tensor, stop: int) -> Tensor:
        """x with end-of-text alone where the sequence has ended."""
        masks_before = (x == self.mask).cumsum(-1)
        ends = self.text & (x == stop) & self.may_end & (masks_before == 0)
        return torch.where(self.text & (ends.cumsum(-1) > 0), stop, x)


def _share_out(steps: int, block: Tensor, masked: Tensor) -> Tensor:
    """(B, blocks) int64: steps in proportion to the masks of a block, at least one if it has any.

    Raises:
        ValueError: fewer steps than blocks.
    """
    blocks = int(block.max()) + 1
    block, masked = block.cpu().clamp(min=0), masked.cpu()
    count = torch.zeros(len(block), blocks, dtype=torch.int64)
    count.scatter_add_(-1, block, masked.long())  # masks of every block
    total, needed = count.sum(-1), (count > 0).long()
    if bool((short := needed.sum(-1) > steps).any()):
        row = int(short.nonzero()[0])
        raise ValueError(
            f"steps={steps} are fewer than the {int(needed[row].sum())} blocks of sequence {row}, "
            "each of which needs one; pass more steps, or a longer block_length"
        )
    # The step with which a block ends: in proportion, after those before, and before those to come.
    end = torch.zeros(len(block), dtype=torch.int64)
    made = torch.zeros_like(count)
    for b in range(blocks):
        due = count[:, : b + 1].sum(-1) * steps // total.clamp(min=1)
        to_come = needed[:, b + 1 :].sum(-1)
        until = torch.minimum(torch.maximum(due, end + needed[:, b]), steps - to_come)
        until = torch.where(count[:, b] > 0, until, end)
        made[:, b], end = until - end, until
    return made.to(masked.device)
