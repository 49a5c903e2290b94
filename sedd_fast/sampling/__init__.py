"""Sampling from a network: ``sample`` from nothing, ``infill`` around given tokens."""

from sedd_fast.sampling.api import METHODS as METHODS
from sedd_fast.sampling.api import Callback as Callback
from sedd_fast.sampling.api import Step as Step
from sedd_fast.sampling.api import infill as infill
from sedd_fast.sampling.api import sample as sample
from sedd_fast.sampling.config import SamplerConfig as SamplerConfig
from sedd_fast.sampling.config import timesteps as timesteps
from sedd_fast.sampling.remask import Remask as Remask
