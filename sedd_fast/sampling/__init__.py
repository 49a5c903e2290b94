"""Sampling from a network: ``sample`` from nothing, ``infill`` around given tokens."""

from sedd_fast.names import DECODING_METHODS, METHODS
from sedd_fast.ops._uniforms import RowStreams
from sedd_fast.sampling.api import Callback, Step, infill, sample
from sedd_fast.sampling.config import SamplerConfig, timesteps
from sedd_fast.sampling.remask import Remask

__all__ = [
    "DECODING_METHODS",
    "METHODS",
    "Callback",
    "Remask",
    "RowStreams",
    "SamplerConfig",
    "Step",
    "infill",
    "sample",
    "timesteps",
]
