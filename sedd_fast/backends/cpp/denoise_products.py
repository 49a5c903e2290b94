"""The statistics of a denoising step in C++, products included (csrc/cpu/head_denoise.cpp)."""

import functools

import torch
from torch import Tensor

from sedd_fast.backends.compiled import address
from sedd_fast.backends.cpp.denoise_head import DenoiseHead, RowStatistics
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.cpp.products import CppHead
from sedd_fast.backends.head import Linear
from sedd_fast.backends.softmax import DenoiseInputs


class ProductsDenoise(DenoiseHead):
    """For products in float32 and float64."""

    def __init__(self, linear: Linear, inputs: DenoiseInputs, bias: Tensor) -> None:
        super().__init__(linear, inputs, bias)
        self.head = CppHead(linear, bias, inputs.softcap)
        self.group = self.head.block

    def count(self) -> int:
        linear, threads = self.linear, self.head.threads
        width, item = linear.hidden.shape[-1], linear.dtype.itemsize
        each = item * (2 * width + threads * self.group) + 8 * (8 + 7 * threads)
        each += self.inputs.embedding * item * width * (1 + threads)
        each += self.draws * 16 * self.groups
        fixed = item * threads * self.group * width
        count = (self.room - fixed) // each
        return max(1, self.head.panel, count - count % self.head.panel)

    def statistics(self, hidden: Tensor) -> RowStatistics:
        head, inputs, rows = self.head.of(hidden), self.inputs, len(hidden)
        numbers = functools.partial(torch.empty, dtype=torch.float64)
        largest, sums, weighted, top, second = numbers(5, rows)
        argmax = torch.empty(rows, dtype=torch.int64)
        groups = numbers(2, self.groups if self.draws else 0, head.padded_rows)
        soft = torch.empty_like(hidden) if inputs.embedding else None
        wanted = (top, second, argmax) if inputs.top else (None, None, None)
        made = kernels().DenoisePass(
            inputs.inverse_temperature, *map(address, (largest, sums, weighted, *groups, *wanted)),
            address(soft),
        )  # fmt: skip
        kernels().head_denoise(head, made)

        def group_weights(some: slice) -> Tensor:
            sums, shift = groups[:, :, :rows]  # without those that pad them
            apart = (shift[:, some] - largest[some]) * inputs.inverse_temperature
            return (apart.exp() * sums[:, some]).T

        return RowStatistics(
            log_sum=largest + sums.log(),
            entropy=sums.log() - weighted / sums,
            top=top,
            second=second,
            argmax=argmax,
            embedding=None if soft is None else soft / sums.to(soft.dtype)[:, None],
            group_weights=group_weights,
        )

    def group_scores(self, hidden: Tensor, group: Tensor) -> Tensor:
        scores = hidden.new_empty(len(hidden), self.group)
        kernels().head_group_scores(self.head.of(hidden), group.data_ptr(), scores.data_ptr())
        return scores
