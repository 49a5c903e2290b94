"""The noise process: graphs (where tokens jump to) and schedules (when)."""

from sedd_fast.process.dense_graph import DenseGraph as DenseGraph
from sedd_fast.process.graphs import Absorbing as Absorbing
from sedd_fast.process.graphs import Graph as Graph
from sedd_fast.process.graphs import Uniform as Uniform
from sedd_fast.process.noise import GeometricNoise as GeometricNoise
from sedd_fast.process.noise import LogLinearNoise as LogLinearNoise
from sedd_fast.process.noise import Noise as Noise
