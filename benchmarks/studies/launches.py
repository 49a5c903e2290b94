"""Every way in which the Triton kernels are launched, on tensors without memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends.inputs import (
    NO_MASK,
    EntropyInputs,
    NoisingInputs,
    ReverseInputs,
    RowSumInputs,
)

GRAPHS = ("absorbing", "uniform")
METHODS = ("analytic", "euler", "denoise")
BATCH, LENGTH = 8, 1024


def launches_of(dtype: torch.dtype, vocab: int, transition: bool) -> "Iterator[Launch]":
    """All kernels on scores or operands of that dtype; those of noising if ``transition``."""
    yield from entropy_launches(dtype, vocab)
    yield from reverse_launches(dtype, vocab)
    yield from head_launches(dtype, vocab)
    yield from sums_launches(dtype, vocab)
    yield from head_step_launches(dtype, vocab)
    yield from softmax_block_launches(dtype, vocab)
    yield from softmax_row_launches(dtype, vocab)
    yield from denoise_launches(dtype, vocab)
    if transition:
        yield from transition_launches(vocab)


@dataclass(frozen=True)
class Launch:
    """One way in which the backend launches a kernel; ``run()`` launches it on meta tensors."""

    name: str
    kernel: Any  # triton.JITFunction
    run: Callable[[], None]


def process(graph: str, vocab: int) -> tuple[str, int, int]:
    """A graph as the inputs take it; its mask is the last state."""
    return graph, vocab, vocab if graph == "absorbing" else NO_MASK


def scores(dim: int, dtype: torch.dtype, layout: str = "") -> Tensor:
    """Scores (B, L, dim) without memory.

    The layout is contiguous (""), has rows "padded" to 16 bytes, has "strided" states, begins one
    state after a multiple of 16 bytes ("offset"), or has "many" rows, several for each program.
    """
    batch = 8 * BATCH if layout == "many" else BATCH
    step = 2 if layout == "strided" else 1
    row = -(-dim // 8) * 8 if layout == "padded" else dim * step
    strides, offset = (LENGTH * row, row, step), int(layout == "offset")
    storage = torch.empty(batch * LENGTH * row + offset, dtype=dtype, device="meta")
    return storage.as_strided((batch, LENGTH, dim), strides, offset)


def small(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape or (BATCH, LENGTH), dtype=dtype, device="meta")


def entropy_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """The loss, the backward, and both in one pass."""
    from sedd_fast.backends.dtypes import gradient_dtype
    from sedd_fast.kernels import score_entropy as op

    sigma, tokens = small(torch.float64, BATCH), small(torch.int64)
    weight, loss, grad_dtype = small(torch.float64), small(torch.float32), gradient_dtype(dtype)
    for graph in GRAPHS:
        dim = vocab + (graph == "absorbing")
        # The gradient of padded scores is dense all the same.
        for form in (
            "loss", "loss strided", "loss offset", "loss many",
            "backward", "with_grad", "with_grad padded",
        ):  # fmt: skip
            kind, _, layout = form.partition(" ")
            grad = {"backward": dtype, "with_grad": grad_dtype}.get(kind)
            arguments = (
                scores(dim, dtype, layout),
                EntropyInputs(sigma, tokens, tokens, weight, *process(graph, vocab)),
                weight if kind == "backward" else None,
                None if kind == "backward" else loss,
                grad and scores(dim, grad),
                1.0,
            )
            yield Launch(
                f"score_entropy {graph} {form}",
                op._score_entropy,
                lambda a=arguments: op.launch(*a),
            )


def reverse_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """Every method of both graphs."""
    from sedd_fast.kernels import reverse_step as op

    sigma, tokens = small(torch.float64, BATCH), small(torch.int64)
    u = small(torch.float64, BATCH, LENGTH, 2)
    for graph in GRAPHS:
        dim = vocab + (graph == "absorbing")
        for form in (*METHODS, "analytic strided", "euler offset", "euler many"):
            method, _, layout = form.partition(" ")
            of = scores(dim, dtype, layout)
            batch = ReverseInputs(tokens, sigma, sigma, u, *process(graph, vocab), method)
            variants = {"": batch}
            if graph == "absorbing":
                variants[" scaled"] = replace(batch, scale_by_sigma=True)
            if form in ("analytic", "euler"):
                variants[" top-p"] = replace(batch, temperature=1.25, top_p=0.9)
            for variant, given in variants.items():
                name, call = f"reverse_step {graph} {form}{variant}", (of, given, tokens)
                yield Launch(name, op._reverse_step, lambda a=call: op.launch(*a))


def sums_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """The sums of every term over a row, and their gradient."""
    from sedd_fast.kernels import row_sums as op

    tokens, number, dim = small(torch.int64), small(torch.float64), vocab + 1
    for term in op.TERMS:
        sums = RowSumInputs(tokens, tokens, number, number, term, *process("absorbing", vocab))
        for form, upstream, last in (
            ("sum", None, number),
            ("backward", (number, number), scores(dim, dtype)),
        ):
            arguments = (scores(dim, dtype), sums, upstream, (number, last))
            name = f"row_sums {term} {form}"
            yield Launch(name, op._row_sums, lambda a=arguments: op.launch(*a))


def head_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """A head of SEDD-small: its first block, its last one (narrower), and the other kernels.

    All blocks use the memory of the largest one: the rows of the last block have the same stride.
    """
    from sedd_fast.backends.dtypes import gradient_dtype
    from sedd_fast.kernels import linear_score_entropy as op

    rows, states = BATCH * LENGTH // 2, 5632
    memory, tokens = small(dtype, rows, states), small(torch.int32, 2, rows)
    of_rows = tokens, small(torch.float32, 5, rows)
    apart = small(gradient_dtype(dtype), rows, states)
    last = vocab // states * states
    for graph in GRAPHS:
        uniform = graph == "uniform"
        sums = small(torch.float64, 1 + uniform, rows)
        for form in ("loss", "with_grad", "with_grad, no bias"):
            grad, bias = form != "loss", "no bias" not in form
            partial = op.PartialSums.like(memory, uniform, grad and bias)
            for block, first in (("first", 0), ("last", last)):
                count = min(states, vocab - first)
                into = (memory if apart.dtype == dtype else apart)[:, :count] if grad else None
                of_bias = small(dtype, count) if bias else None
                arguments = (memory[:, :count], of_bias, into, of_rows, partial, first)
                for with_x_t in (True,) if uniform else (False, True):
                    with_mask = ", mask among the tokens" * (with_x_t and not uniform)
                    yield Launch(
                        f"linear_score_entropy {graph} {form}, {block} block{with_mask}",
                        op._linear_score_entropy,
                        lambda a=(*arguments, with_x_t): op.launch(*a),
                    )
        call = (partial, sums, small(torch.float32, states), states, True, False)
        yield Launch(
            f"linear_score_entropy {graph} sums", op._add_sums, lambda a=call: op.launch_sums(*a)
        )
    yield from head_row_launches(dtype, vocab)


def head_row_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """Finding, gathering and finishing the rows of a head, and the scale of its gradients."""
    from sedd_fast.backends.dtypes import gradient_dtype
    from sedd_fast.kernels import head_rows as op
    from sedd_fast.kernels import scale_gradient

    rows, width, grad_dtype = BATCH * LENGTH // 2, 768, gradient_dtype(dtype)
    tokens, weight, index = small(torch.int64), small(torch.float64), small(torch.int64, rows)
    terms = small(torch.float32, 5, rows)
    gathered = small(dtype, rows, width), small(torch.int32, 2, rows), terms
    hidden = small(dtype, BATCH, LENGTH, width)
    for graph in GRAPHS:
        uniform = graph == "uniform"
        sigma = small(torch.float64, BATCH)
        batch = EntropyInputs(sigma, tokens, tokens, weight, *process(graph, vocab), not uniform)
        operands = hidden, small(dtype, vocab + 1, width), small(dtype, vocab + 1)
        made = small(torch.float32, rows, width), small(grad_dtype, BATCH, LENGTH, width)
        sums = small(torch.float64, 1 + uniform, rows)
        for name, kernel, launch, arguments in (
            ("touched", op._touched, op.launch_touched,
             (batch, tokens.flatten(), small(torch.int64, 1))),
            ("gather", op._gather, op.launch_gather, (batch, index, operands, weight, gathered)),
            ("scatter", op._scatter, op.launch_scatter,
             (batch, index, terms, sums, small(torch.float32), made)),
        ):  # fmt: skip
            yield Launch(f"head rows {graph} {name}", kernel, lambda f=launch, a=arguments: f(*a))
    gradient, one = small(grad_dtype, vocab + 1, width), small(torch.float32, 1)
    scale = scale_gradient
    for name, out in (("in place", gradient), ("into another", small(dtype, vocab + 1, width))):
        call = (gradient, one, out)
        yield Launch(
            f"scale_gradient {name}", scale._scale_gradient, lambda a=call: scale.launch(*a)
        )


def head_step_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """A step from the hidden states of SEDD-small, both graphs."""
    from sedd_fast.kernels import linear_reverse_step as op
    from sedd_fast.kernels.tiles import Operands

    rows, width = BATCH * LENGTH // 2, 768
    hidden, live = small(dtype, rows, width), small(torch.int64, 1)
    tokens = small(torch.int64, rows)
    whole = Operands(hidden, small(dtype, vocab, width), small(torch.float32, vocab), live)
    groups = op.GroupSums(*(small(torch.float32, -(-vocab // op.group_states(dtype)), rows),) * 2)
    sigma, of = small(torch.float64, BATCH), small(torch.int64)
    u = small(torch.float64, BATCH, LENGTH, 2)
    of_mask = whole, tokens, groups, 0, True
    with_mask = [("sums, mask among the tokens", op._group_sums, op.launch_sums, of_mask)], []
    for uniform in (False, True):
        graph = process(GRAPHS[uniform], vocab)
        reverse = ReverseInputs(of, sigma, sigma, u, *graph, "euler", not uniform)
        for name, kernel, launch, arguments in (
            ("sums", op._group_sums, op.launch_sums, (whole, tokens, groups, 0, uniform)),
            *with_mask[uniform],
            ("draw", op._draw, op.launch_draw, (whole, tokens, reverse, groups, of)),
        ):
            yield Launch(
                f"linear_reverse_step {GRAPHS[uniform]} {name}",
                kernel,
                lambda f=launch, a=arguments: f(*a),
            )


def softmax_block_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """The sums and the gradient of a block of a head with a softmax, and its probabilities."""
    from sedd_fast.backends.dtypes import gradient_dtype
    from sedd_fast.kernels import softmax_blocks as op

    rows, states = BATCH * LENGTH // 2, 12_288
    memory, target = small(dtype, rows, states), small(torch.int32, rows)
    into = small(gradient_dtype(dtype), rows, states)
    partial = small(torch.float32, 2, op.tiles(vocab, dtype), rows)
    terms = small(torch.float32, 4, rows)
    columns = small(torch.float32, -(-rows // op.tile_of(dtype).group), states)
    bias = small(torch.float32, states)
    for form, block in (
        ("", op.Block(memory, bias, 0, 0.0)),
        (" no bias", op.Block(memory, None, 0, 0.0)),
        (" softcap", op.Block(memory, bias, 0, 30.0)),
    ):
        sums, gradient = op._softmax_sums, op._softmax_gradient
        scores, of = block.scores, columns if block.bias is not None else None
        for name, kernel, launch, arguments in (
            ("sums", sums, op.launch_sums, (block, target, partial, terms[0])),
            ("gradient", gradient, op.launch_gradient,
             (block, target, terms, into[:, : scores.shape[1]], of)),
            ("probabilities", gradient, op.launch_gradient, (block, None, terms, scores, None)),
        ):  # fmt: skip
            yield Launch(f"softmax {name}{form}", kernel, lambda f=launch, a=arguments: f(*a))


def softmax_row_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """Gathering, finishing and scattering the rows of a head with a softmax."""
    from sedd_fast.backends.dtypes import gradient_dtype
    from sedd_fast.kernels import softmax_rows as op
    from sedd_fast.kernels.softmax_blocks import tiles

    rows, width = BATCH * LENGTH // 2, 768
    index, number = small(torch.int64, rows), small(torch.float64)
    targets = op.Targets(small(torch.int64), number)
    gathered = small(dtype, rows, width), small(torch.int32, rows)
    hidden, total = small(dtype, BATCH, LENGTH, width), small(torch.float32, rows, width)
    partial, picked = small(torch.float32, 2, tiles(vocab, dtype), rows), small(torch.float32, rows)
    finished = op.Finished(
        partial, picked, small(torch.float32, vocab), number, small(torch.float32),
        small(torch.float32, 4, rows),
    )  # fmt: skip
    out = small(gradient_dtype(dtype), BATCH, LENGTH, width)
    for name, kernel, launch, arguments in (
        ("gather", op._gather, op.launch_gather, (index, hidden, vocab, targets, gathered)),
        ("gather, no targets", op._gather, op.launch_gather,
         (index, hidden, vocab, None, gathered)),
        ("finish", op._finish, op.launch_finish, (index, targets, finished, vocab, 0.0, False)),
        ("finish, known", op._finish, op.launch_finish,
         (index, targets, finished, vocab, 0.0, True)),
        ("scatter", op._scatter, op.launch_scatter, (index, total, out)),
    ):  # fmt: skip
        yield Launch(f"softmax rows {name}", kernel, lambda f=launch, a=arguments: f(*a))


def denoise_launches(dtype: torch.dtype, vocab: int) -> Iterator[Launch]:
    """The statistics of a block, and what is chosen of a row: all that can be, and less."""
    from sedd_fast.kernels import denoise_statistics as of_groups
    from sedd_fast.kernels import linear_denoise as op
    from sedd_fast.kernels.softmax_blocks import Block

    rows, states, width = 512, 16_384, 768
    index, u = small(torch.int64, rows), small(torch.float64, 1, rows, 2)
    hidden, scores = small(dtype, rows, width), small(dtype, rows, states)
    token, number = small(torch.int64, 1, rows), small(torch.float32, 1, rows)
    terms, groups = small(torch.float32, 4, rows), -(-vocab // of_groups.group_states(dtype))
    weight, bias = small(dtype, vocab, width), small(torch.float32, vocab)
    results = op.Results(token, number, token, number, number, number, number, terms)
    for name, softcap, wanted, draw in (
        ("all", 30.0, (True, True, True), op.Draw(index, u, None)),
        ("all but a softcap", 0.0, (False, True, True), op.Draw(index, u, None)),
        ("a given token", 0.0, (False, False, False), op.Draw(index, None, index)),
        ("log_sum", 0.0, (False, False, False), op.Draw(index, None, None)),
    ):
        made = of_groups.Statistics.like(hidden, groups, *wanted)
        block = Block(scores, bias[:states], 0, softcap)
        products = small(dtype, rows, vocab + 47) if softcap else None
        head = op.Head(hidden, weight, bias, softcap, products)
        for part, kernel, launch, arguments in (
            ("statistics", of_groups._statistics, of_groups.launch_statistics, (block, made, 1.25)),
            ("choice", op._choose, op.launch_choose, (made, head, draw, results, 1.25)),
        ):
            yield Launch(
                f"linear_denoise {part}, {name}", kernel, lambda f=launch, a=arguments: f(*a)
            )


def transition_launches(vocab: int) -> Iterator[Launch]:
    """Noising, on both graphs."""
    from sedd_fast.kernels import sample_transition as op

    sigma, tokens = small(torch.float64, BATCH), small(torch.int64)
    u = small(torch.float64, BATCH, LENGTH, 2)
    for graph in GRAPHS:
        arguments = (NoisingInputs(tokens, sigma, u, *process(graph, vocab)), tokens)
        yield Launch(
            f"sample_transition {graph}", op._sample_transition, lambda a=arguments: op.launch(*a)
        )
