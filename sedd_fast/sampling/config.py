"""The settings of a sampler (``SamplerConfig``), and the grid of times."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.backends import registry
from sedd_fast.names import DECODING_METHODS, METHODS, Method
from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.dense_graph import DenseGraph
from sedd_fast.process.graphs import Graph
from sedd_fast.sampling.remask import Remask

_MOST = 2**31 - 1  #: steps and tokens; more are a mistake

#: The methods that an option has an effect with; with others it is refused.
USED_BY: dict[str, tuple[Method, ...]] = {
    "theta": ("theta_trapezoidal",),
    "remask": ("analytic",),
    "legacy_fp32_gumbel": ("analytic", "euler"),
    "threshold": ("threshold",),
    "entropy_bound": ("entropy_bound",),
    "block_length": DECODING_METHODS,
    "stop_token": DECODING_METHODS,
    "guidance": DECODING_METHODS,
}


@dataclass(frozen=True)
class SamplerConfig:
    """How to sample: the keyword arguments that ``sample`` and ``infill`` share.

    Args:
        method: one of ``sedd_fast.sampling.METHODS``.
        steps: number of intervals of the time grid; for the methods of ``DECODING_METHODS`` the
            most network calls of a sequence. None ("hit" and these): one position at a time; for
            "threshold" and "entropy_bound": as many calls as their rule takes.
        denoise: end with a step that removes all noise left at ``eps``.
        eps: the last time of the grid; networks are passed no lower noise level.
        theta: for "theta_trapezoidal": where in a step the second network call is made, in (0, 1).
        remask: for "analytic" on the absorbing graph: which tokens a step masks again.
        temperature, top_p: which token a position jumps to (``token_filter.py``). Temperature 0,
            the likeliest token, is for the methods of ``DECODING_METHODS``.
        legacy_fp32_gumbel: draw as the original code does (``legacy_gumbel.py``).
        threshold: for "threshold": the probability from which on tokens are accepted, in (0, 1].
        entropy_bound: for "entropy_bound": nats, at least 0.
        block_length, stop_token, guidance: for the methods of ``DECODING_METHODS`` on the absorbing
            graph: the length of blocks that are unmasked one after the other; the end-of-text that
            ends a sequence; the weight w of classifier-free guidance (``decoding.py``).

    Raises:
        TypeError, ValueError: a setting has the wrong type, is out of range or has no effect with
            the method.

    Example:
        >>> config = SamplerConfig("hit", steps=256)
        >>> tokens = sample(model, graph, noise, (4, 1024), **vars(config))
    """

    method: Method = "analytic"
    steps: int | None = 128
    denoise: bool = True
    eps: float = 1e-5
    theta: float = 0.5
    remask: Remask | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    legacy_fp32_gumbel: bool = False
    threshold: float = 0.9
    entropy_bound: float = 0.1
    block_length: int | None = None
    stop_token: int | None = None
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = "; for a last denoising step pass denoise=True" * (self.method == "denoise")
            known = ", ".join(map(repr, METHODS))
            raise ValueError(f"method must be one of {known}, got {self.method!r}{hint}")
        arguments.check_numbers(
            theta=self.theta, threshold=self.threshold, entropy_bound=self.entropy_bound,
            guidance=self.guidance, temperature=self.temperature, top_p=self.top_p,
        )  # fmt: skip
        timesteps(1, self.eps)  # checks it
        if self.steps is not None:
            object.__setattr__(self, "steps", _whole_steps(self.steps))
        self._check_shares()
        self._check_ranges()
        for name, methods in USED_BY.items():
            value = getattr(self, name)
            if value != getattr(SamplerConfig, name) and self.method not in methods:
                raise ValueError(
                    f"{name}={value} has an effect with method {_listed(methods)} only, not with "
                    f"{self.method!r}; leave it out"
                )
        if self.steps is None and self.method not in ("hit", *DECODING_METHODS):
            raise ValueError(
                "steps=None, one position at a time, works with method "
                f"{_listed(('hit', *DECODING_METHODS))} only, not with {self.method!r}; give a "
                "number of steps"
            )
        if not self.denoise and self.is_decoding:
            raise ValueError(
                f"denoise=False has no effect with method {self.method!r}, which leaves no noise; "
                "leave it out"
            )

    def _check_shares(self) -> None:
        if self.temperature != 0 or not self.is_decoding:
            arguments.check_shares(self.temperature, self.top_p)
        elif self.top_p != 1:
            raise ValueError(
                f"top_p={self.top_p} has no effect at temperature 0, which takes the likeliest "
                "token; leave it out"
            )

    def _check_ranges(self) -> None:
        if not 0 < self.theta < 1:
            raise ValueError(
                f"theta must lie in (0, 1), got {self.theta}; 0.5 is usual: the second network "
                "call in the middle of the step"
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {self.threshold}; 0.9 is usual")
        for name, usual in (("entropy_bound", 0.1), ("guidance", 1)):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(
                    f"{name} must be at least 0 and finite, got {value}; {usual} is usual"
                )
        for name, least in (("block_length", 1), ("stop_token", 0)):
            if (value := getattr(self, name)) is not None:
                value = arguments.check_count(name, value, least, most=_MOST)
                object.__setattr__(self, name, value)

    @property
    def is_decoding(self) -> bool:
        """Whether the method unmasks first what the network is sure of."""
        return self.method in DECODING_METHODS

    def check_graph(self, graph: Graph) -> None:
        """Check that a sampler with these settings can draw from this graph.

        Raises:
            TypeError: ``graph`` is not a graph.
            ValueError: a setting does not work with this graph, or with the backend in use.
        """
        dense = isinstance(graph, DenseGraph)
        if not dense:
            arguments.check_graph(graph)
        if self.method == "hit" and graph.mask_index is None:
            raise ValueError(
                "method 'hit' needs the absorbing graph, where a position moves once and at a time "
                f"that does not depend on the text; the graph is {graph.kind}: use 'analytic'"
            )
        if self.is_decoding:
            self._check_decoding(graph)
        if self.remask is not None and graph.kind != "absorbing":
            raise ValueError(
                f"remask works with the absorbing graph only, not with the {graph.kind} graph"
            )
        changed = self.temperature != 1 or self.top_p != 1 or self.legacy_fp32_gumbel
        if dense and changed:
            raise ValueError(
                "a DenseGraph takes no temperature, top_p or legacy_fp32_gumbel; leave them at "
                "their defaults"
            )
        requested = registry.requested()
        if (dense or self.legacy_fp32_gumbel) and requested not in (None, "reference"):
            what = "a DenseGraph" if dense else "legacy_fp32_gumbel"
            raise ValueError(
                f"{what} is plain torch, but backend {requested!r} was asked for; ask for "
                "'reference' or for none"
            )

    def _check_decoding(self, graph: Graph) -> None:
        if graph.kind != "absorbing" and (graph.kind, self.method) != ("uniform", "entropy_bound"):
            raise ValueError(
                f"method {self.method!r} unmasks positions and needs the absorbing graph, the "
                f"graph is {graph.kind}: use 'analytic', or with the uniform graph 'entropy_bound'"
            )
        if self.stop_token is not None and not 0 <= self.stop_token < graph.dim:
            raise ValueError(
                f"stop_token must be a token, got {self.stop_token}; tokens are "
                f"{graph.tokens_in_words}"
            )
        if graph.kind == "absorbing":
            if self.stop_token == graph.mask_index:
                raise ValueError(f"stop_token is the mask, {self.stop_token}; pass a token")
            return
        for name in ("block_length", "stop_token", "guidance"):
            if getattr(self, name) != getattr(SamplerConfig, name):
                raise ValueError(
                    f"{name} works with the absorbing graph only, not with the uniform one; leave "
                    "it out"
                )
        if self.steps is None:
            raise ValueError(
                "steps=None works with the absorbing graph; with the uniform one positions are "
                "noised again until the last step: give a number of steps"
            )

    @property
    def times(self) -> Tensor:
        """The time grid, (steps + 1,) float64."""
        assert self.steps is not None, "there is no grid with steps=None"
        return timesteps(self.steps, self.eps)


def timesteps(steps: int, eps: float = 1e-5, device: torch.device | str | None = None) -> Tensor:
    """The time grid of a sampler: (steps + 1,) float64, evenly spaced from 1 down to ``eps``.

    Raises:
        TypeError: ``steps`` is not an int, or ``eps`` not a number.
        ValueError: ``steps`` below 1, ``eps`` outside (0, 1).
    """
    steps = _whole_steps(steps)
    arguments.check_numbers(eps=eps)
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie in (0, 1), got {eps}; the usual value is 1e-5")
    return torch.linspace(1, eps, steps + 1, dtype=torch.float64, device=device)


def _whole_steps(steps: int) -> int:
    return arguments.check_count("steps", steps, hint="; 64 to 1024 are usual", most=_MOST)


def _listed(methods: tuple[Method, ...]) -> str:
    *others, last = map(repr, methods)
    return f"{', '.join(others)} or {last}" if others else last
