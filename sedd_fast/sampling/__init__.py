"""Drawing text from a network: ``sample`` from nothing, ``infill`` around given text."""

from sedd_fast.sampling.api import METHODS, Callback, Step, infill, sample
from sedd_fast.sampling.config import timesteps
from sedd_fast.sampling.remask import Remask

__all__ = ["METHODS", "Callback", "Remask", "Step", "infill", "sample", "timesteps"]
