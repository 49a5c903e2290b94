"""Exponential moving average of parameters, with the warm-up and file format of the original SEDD.

In a training loop:

    ema = ExponentialMovingAverage(model.parameters(), decay=0.9999)
    ...; optimizer.step(); ema.update(model.parameters())
    ema.store(model.parameters()); ema.copy_to(model.parameters())      # evaluate the average
    ema.restore(model.parameters())                                     # and continue training
"""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import fp32_or_fp64

_STATE = ("decay", "num_updates", "shadow_params")


class ExponentialMovingAverage:
    """shadow <- shadow - (1 - d) * (shadow - parameter), d = min(decay, (1 + n) / (10 + n)).

    n counts the updates from 1, so the average forgets the random start within a few dozen steps;
    with `use_num_updates=False` d is `decay` throughout. Parameters that need no gradient are left
    out. Shadows are fp32 or fp64: with decay 0.9999 an average in bf16 would never change.

    Raises ValueError for a decay outside [0, 1] and for parameters that do not fit the shadows.
    """

    def __init__(
        self, parameters: Iterable[Tensor], decay: float, use_num_updates: bool = True
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1], got {decay!r}; 0.9999 is usual")
        self.decay = decay
        self.num_updates: int | None = 0 if use_num_updates else None
        self.shadow_params = [
            p.detach().to(fp32_or_fp64(p.dtype), copy=True) for p in parameters if p.requires_grad
        ]
        self.collected_params: list[Tensor] = []

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor]) -> None:
        """Move the averages towards the parameters; call it after an optimiser step."""
        current = self._matching(parameters)
        decay = self.decay
        if self.num_updates is not None:
            self.num_updates += 1
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        if current:
            same_dtype = [p.to(s.dtype) for p, s in zip(current, self.shadow_params, strict=True)]
            torch._foreach_lerp_(self.shadow_params, same_dtype, 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Overwrite the parameters with their averages."""
        for p, shadow in zip(self._matching(parameters), self.shadow_params, strict=True):
            p.copy_(shadow)

    @torch.no_grad()
    def store(self, parameters: Iterable[Tensor]) -> None:
        """Keep a copy of the parameters for `restore`."""
        self.collected_params = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[Tensor]) -> None:
        """Copy the values that `store` kept back into the parameters, and free them."""
        parameters = list(parameters)
        if len(parameters) != len(self.collected_params):
            raise ValueError(
                f"restore got {len(parameters)} parameters, but {len(self.collected_params)} are "
                "stored; call store with the same parameters first"
            )
        for p, kept in zip(parameters, self.collected_params, strict=True):
            p.copy_(kept)
        self.collected_params = []

    def state_dict(self) -> dict[str, Any]:
        """decay, num_updates and shadow_params (the live tensors), as the original writes them."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned; the shadows keep their device.

        Raises ValueError, with nothing changed, for a state of another form or another model.
        """
        if missing := set(_STATE) - set(state_dict if isinstance(state_dict, Mapping) else ()):
            raise ValueError(f"state_dict lacks {sorted(missing)}: not the state of an EMA")
        decay, updates, saved = (state_dict[name] for name in _STATE)
        if not isinstance(decay, (int, float)) or not 0.0 <= decay <= 1.0:
            raise ValueError(f"the saved EMA: decay must lie in [0, 1], got {reprlib.repr(decay)}")
        if updates is not None and not (isinstance(updates, int) and 0 <= updates < 2**63):
            raise ValueError(
                f"the saved EMA: num_updates must be a count or None, got {reprlib.repr(updates)}"
            )
        check_shapes(saved, self.shadow_params, "the saved EMA")
        self.decay, self.num_updates = decay, updates
        for shadow, value in zip(self.shadow_params, saved, strict=True):
            shadow.copy_(value)

    def _matching(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        current = [p for p in parameters if p.requires_grad]
        check_shapes(self.shadow_params, current, "the EMA")
        return current


def check_shapes(shadows: list[Tensor], parameters: list[Tensor], source: str) -> None:
    """Raise ValueError unless the averages match the parameters, in order and in shape."""
    if not isinstance(shadows, list) or not all(isinstance(s, Tensor) for s in shadows):
        raise ValueError(f"{source} must be a list of tensors, got {type(shadows).__name__}")
    if len(shadows) != len(parameters):
        raise ValueError(
            f"{source} has {len(shadows)} tensors, but there are {len(parameters)} trainable "
            "parameters; it belongs to another model"
        )
    for i, (shadow, p) in enumerate(zip(shadows, parameters, strict=True)):
        if shadow.shape != p.shape:
            raise ValueError(
                f"tensor {i} of {source} has shape {tuple(shadow.shape)}, but parameter {i} has "
                f"{tuple(p.shape)}; it belongs to another model, or the order differs"
            )
