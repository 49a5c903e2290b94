"""A step of the sampler "confidence", from hidden states: part of the suite "head".

All contenders start from the same hidden states of one sequence, all masked, and return its tokens
after the first of as many steps as positions: a token is drawn everywhere, that of the highest
probability is kept. The network's body is left out. The floor is the head's one bare product.

- ours: ``DecodingSampler.step`` with a ``PosteriorModel`` that exposes its hidden states;
- eager: the same rule on logits in float32, as MaskGIT and Fast-dLLM compute it;
- eager, float64: the same with LLaDA's draw; on a CPU only with ``config.slow``.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import sedd_fast as sf
from benchmarks.contenders import softmax_head as contenders
from benchmarks.harness.cases import Case, Contender, ours
from benchmarks.harness.config import DTYPES, BenchmarkConfig
from benchmarks.suites.head import choose, products
from benchmarks.suites.softmax_head import SoftmaxHead, make_head
from sedd_fast.sampling.config import SamplerConfig
from sedd_fast.sampling.methods import make_sampler
from sedd_fast.sampling.reverse_process import ReverseProcess

TITLE = "decoding step, confidence"
#: Positions, states (LLaDA's) and width; and to check that it runs.
SHAPE = (256, 126_464, 512)
QUICK_SHAPE = (16, 1024, 32)

Statistics = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


class HiddenStates(nn.Module):
    """A network whose hidden states are given."""

    def __init__(self, p: SoftmaxHead) -> None:
        super().__init__()
        self.states = p.hidden.detach()[None]
        self.head = nn.Linear(1, 1, device=p.hidden.device)
        self.head.weight = nn.Parameter(p.weight.detach())
        self.head.bias = nn.Parameter(p.bias.detach())


def decoding_cases(config: BenchmarkConfig) -> Iterator[Case]:
    """One step for every dtype."""
    device = torch.device(config.device)
    for name in config.dtypes:
        shape = QUICK_SHAPE if config.quick else SHAPE
        p = make_head(device, *shape, DTYPES[name])
        chosen = choose(config, len(p.hidden), DTYPES[name])
        network = HiddenStates(p)
        graph, noise = sf.Absorbing(p.excluded), sf.LogLinearNoise()
        model = sf.PosteriorModel(
            network, graph, False, hidden=lambda network, x: network.states, head=network.head
        )  # fmt: skip
        x = torch.full((1, shape[0]), p.excluded, device=device)
        process = ReverseProcess(model, graph, noise, SamplerConfig("confidence", shape[0]))
        process.begin(x)

        def run(process: ReverseProcess = process, x: Tensor = x) -> object:
            with torch.no_grad():
                return make_sampler(process, x).step(0, x)

        def eager(statistics: Statistics, p: SoftmaxHead = p, x: Tensor = x) -> object:
            with torch.no_grad():
                return on_logits(statistics, p, x)

        found = [Contender("eager, float32 softmax", "eager", lambda: eager(contenders.everything))]
        if chosen.slow:
            found.append(
                Contender(
                    "eager, float64 (LLaDA)", "eager", lambda: eager(contenders.gumbel_everything)
                )
            )
        yield Case(
            "head",
            TITLE,
            f"{shape[0]:,} x {shape[2]} x {shape[1]:,}",
            name,
            tuple(found + ours(config, "", run, op="linear_denoise")),
            floor_runs=products(
                p.hidden.detach(), p.weight.detach(), False, not chosen.fast_products
            ),
            at=shape[0],
            returned_bytes=0,
            logits_bytes=p.logits_bytes,
        )


def on_logits(statistics: Statistics, p: SoftmaxHead, x: Tensor) -> Tensor:
    """The rule on logits: x (1, L) with the surest of all drawn tokens in place."""
    token, log_p = statistics(*(leaf.detach() for leaf in p.leaves))[:2]
    surest = log_p.topk(1).indices
    after = x.clone()
    after[0, surest] = token[surest]
    return after
