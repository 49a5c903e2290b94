"""The noise process: graphs (where tokens jump to) and schedules (when)."""

from sedd_fast.process.dense_graph import DenseGraph
from sedd_fast.process.graphs import Absorbing, Graph, Uniform
from sedd_fast.process.noise import GeometricNoise, LogLinearNoise, Noise

__all__ = [
    "Absorbing",
    "DenseGraph",
    "GeometricNoise",
    "Graph",
    "LogLinearNoise",
    "Noise",
    "Uniform",
]
