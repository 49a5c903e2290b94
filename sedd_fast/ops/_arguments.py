"""Checks of dtype, shape and device, made once in the public functions, and the noise's one shape.

Each check names the argument, what came, what was expected and the remedy. Values are checked
inside the operations (``sedd_fast.backends.values``): reading one here would synchronise a GPU.
"""

import operator
import reprlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sedd_fast.backends.compiled import DTYPES
from sedd_fast.backends.inputs import NO_MASK
from sedd_fast.names import GRAPHS, Reduction, StepMethod


class GraphLike(Protocol):
    """What an operation needs to know of a graph (``sedd_fast.process.graphs``)."""

    @property
    def kind(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def mask_index(self) -> int | None: ...


def check_graph(graph: GraphLike) -> None:
    """TypeError unless ``graph`` is a graph, ValueError for a process of another kind."""
    if not all(hasattr(graph, name) for name in ("kind", "vocab_size", "dim", "mask_index")):
        raise TypeError(
            f"graph must be sedd_fast.Absorbing(V) or sedd_fast.Uniform(V), "
            f"got {type(graph).__name__}"
        )
    if graph.kind not in GRAPHS:
        hint = "; a DenseGraph goes into sample, infill and DenseScoreEntropyLoss"
        raise ValueError(
            f"graph has kind {graph.kind!r}; known here are {', '.join(GRAPHS)}"
            + hint * (graph.kind == "dense")
        )


def process(graph: GraphLike) -> tuple[str, int, int]:
    """The scalars that stand for a graph in the inputs of an operation (``backends.inputs``)."""
    mask = graph.mask_index
    return graph.kind, graph.vocab_size, NO_MASK if mask is None else mask


def without_gradient(value: Tensor) -> Tensor:
    """The tensor, detached if it may have a derivative; ``detach`` itself takes a microsecond."""
    return value.detach() if value.requires_grad or forward_ad._current_level >= 0 else value


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {reprlib.repr(value)}"
        )


def check_bool(name: str, value: object) -> bool:
    """The value itself; TypeError unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def check_tensor(name: str, value: object) -> Tensor:
    """The tensor itself; TypeError for anything else."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def check_floating(name: str, value: Tensor) -> None:
    """TypeError unless ``value`` is a tensor of a floating dtype."""
    if check_tensor(name, value).dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def whole(value: object) -> int | None:
    """An int, or an integer of NumPy as an int; None for anything else, a bool and a tensor too."""
    if isinstance(value, (bool, Tensor)):
        return None
    try:
        return value if isinstance(value, int) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_count(
    name: str, value: object, least: int = 1, hint: str = "", most: float = float("inf")
) -> int:
    """The value as an int; ``hint`` is a remedy.

    Raises:
        TypeError: it is not an int, nor an integer of NumPy.
        ValueError: it is below ``least`` or above ``most``.
    """
    if (number := whole(value)) is None:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}{hint}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}{hint}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}{hint}")
    return number


def check_rows(log_score: Tensor, graph: GraphLike, **tokens: Tensor) -> None:
    """A row of scores, (B, L, dim), for every one of the tokens, on one device."""
    check_graph(graph)
    check_floating("log_score", log_score)
    if log_score.dim() != 3:
        raise ValueError(
            f"log_score must have shape (B, L, {graph.dim}), got {tuple(log_score.shape)}; "
            "add the missing dimension with unsqueeze"
        )
    if log_score.shape[-1] != graph.dim:
        mask = "" if graph.mask_index is None else f" (the mask is {graph.mask_index})"
        raise ValueError(
            f"log_score has {log_score.shape[-1]} states in its last dimension, but the "
            f"{graph.kind} graph over {graph.vocab_size} tokens has {graph.dim}{mask}; "
            "make the network's output and the graph agree"
        )
    check_all_tokens(tokens, log_score, "log_score")


def check_shape(shape: tuple[int, int], least: int) -> tuple[int, int]:
    """(B, L) as two int; ValueError unless ``shape`` is a pair of them, of at least ``least``."""
    sizes = [whole(n) for n in shape] if isinstance(shape, (tuple, list)) else []
    numbers = [n for n in sizes if n is not None and n >= least]
    if len(sizes) != 2 or len(numbers) != 2:
        expected = f"two whole numbers of at least {least}"
        raise ValueError(f"shape must be (B, L), {expected}, got {shape!r}")
    return numbers[0], numbers[1]


def check_tokens(name: str, tokens: Tensor, shape: Sequence[int] | None = None) -> None:
    """(B, L) int64, of the given shape."""
    check_tensor(name, tokens)
    if tokens.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {tokens.dtype}; convert it with .long()")
    if shape is None and tokens.dim() != 2:
        raise ValueError(
            f"{name} must have shape (B, L), got {tuple(tokens.shape)}; "
            f"one sequence is {name}[None]"
        )
    if shape is not None and tokens.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tokens.shape)}")


def check_mask(name: str, mask: Tensor, tokens: Tensor) -> None:
    """bool, of the shape of the tokens and on their device."""
    if check_tensor(name, mask).dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}; convert it with .bool()")
    if mask.shape != tokens.shape:
        raise ValueError(
            f"{name} must have shape {tuple(tokens.shape)}, got {tuple(mask.shape)}; "
            f"one pattern for all sequences is {name}.expand(B, L)"
        )
    check_device(name, mask, tokens, "tokens")


def check_device(name: str, value: Tensor, like: Tensor, like_name: str) -> None:
    """ValueError unless both tensors are on one device."""
    if value.device != like.device:
        raise ValueError(
            f"{name} is on {value.device} but {like_name} on {like.device}; "
            f"move it with .to({str(like.device)!r})"
        )


def per_sequence(name: str, value: Tensor | float, tokens: Tensor) -> Tensor:
    """A noise level given as a number, (), (B,) or (B, 1), as (B,) beside ``tokens``.

    float64, but float32 stays float32: backends convert it themselves, since a conversion here is a
    launch on a GPU.

    Raises:
        TypeError: neither a number nor a real tensor.
        ValueError: another shape, or gradients asked for, which no operation gives.
    """
    batch = tokens.shape[0]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((batch,), float(value), dtype=torch.float64, device=tokens.device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    if value.dtype == torch.bool:
        raise TypeError(f"{name} must be real, got {value.dtype}")
    dtype = _real_dtype(name, value)
    if value.dim() == 0:
        value = value.expand(batch)
    elif value.shape == (batch, 1):
        value = value.squeeze(-1)
    elif value.shape != (batch,):
        raise ValueError(
            f"{name} must be a number or have shape ({batch},) or ({batch}, 1), "
            f"got {tuple(value.shape)}"
        )
    if value.dtype == dtype and value.device == tokens.device:
        return value
    return value.to(device=tokens.device, dtype=dtype)


def _real_dtype(name: str, value: Tensor, differentiable: bool = False) -> torch.dtype:
    """float32 for a float32 tensor, float64 for every other real one.

    Raises:
        TypeError: complex.
        ValueError: a gradient is required of it, and it is not ``differentiable``.
    """
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}")
    if value.requires_grad and not differentiable:
        raise ValueError(f"{name} requires a gradient, which this operation lacks; detach it")
    return torch.float32 if value.dtype == torch.float32 else torch.float64


def per_position(
    name: str,
    value: Tensor | None,
    tokens: Tensor,
    differentiable: bool = False,
    beside: str = "x_t",
) -> Tensor | None:
    """An optional number for every position, (B, L), in the dtypes of per_sequence."""
    if value is None:
        return None
    dtype = _real_dtype(name, check_tensor(name, value), differentiable)
    if value.shape != tokens.shape:
        raise ValueError(
            f"{name} must have shape {tuple(tokens.shape)}, got {tuple(value.shape)}; "
            "expand a weight per sequence with [:, None].expand(B, L)"
        )
    check_device(name, value, tokens, beside)
    return value if value.dtype == dtype else value.to(dtype)


def check_all_tokens(tokens: dict[str, Tensor], like: Tensor, like_name: str) -> None:
    """(B, L) int64 beside ``like`` (B, L, ...), on its device."""
    shape = tuple(like.shape[:2])
    for name, value in tokens.items():
        check_tokens(name, value, shape)
        check_device(name, value, like, like_name)


def noise_removed(
    sigma: Tensor | float, dsigma: Tensor | float | None, method: StepMethod, x_t: Tensor
) -> tuple[Tensor, Tensor]:
    """sigma and dsigma of a reverse step, (B,) as of per_sequence; denoising needs no dsigma."""
    if method == "denoise":
        dsigma = 0.0
    elif dsigma is None:
        raise ValueError(
            f"dsigma is needed for method {method!r}: the noise removed (analytic) or step "
            "size times noise rate (euler)"
        )
    return per_sequence("sigma", sigma, x_t), per_sequence("dsigma", dsigma, x_t)


def check_numbers(**values: object) -> None:
    """TypeError unless every value is an int or a float."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_shares(temperature: float, top_p: float) -> tuple[float, float]:
    """Both as float; TypeError for what is no number, ValueError for what is out of range."""
    check_numbers(temperature=temperature, top_p=top_p)
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature must be positive, got {temperature}; 1 is the model's own distribution"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}; 1 keeps every token")
    return float(temperature), float(top_p)


def factor_of_each(tokens: Tensor, reduction: Reduction) -> float:
    """The factor of every position's loss in its sum or mean; NaN for the mean of none."""
    if reduction != "mean":
        return 1.0
    return 1.0 / tokens.numel() if tokens.numel() else float("nan")


def reduce(loss: Tensor, reduction: Reduction) -> Tensor:
    """(B, L) as it is, its sum, or its mean, which is NaN where there is no position, as torch's
    own losses have it.
    """
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()
