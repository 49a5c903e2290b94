"""Many threads: the same results for any number, concurrent callers, forked children."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.backends import cpp

pytestmark = pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")
#: 128 rows of 5000 states are enough work to use seven threads.
V = 5000
GRAPHS = (sf.Absorbing(V), sf.Uniform(V))
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)


@pytest.fixture(autouse=True)
def on_cpp() -> Iterator[None]:
    threads = torch.get_num_threads()
    with sf.use_backend("cpp"):
        yield
    torch.set_num_threads(threads)


def everything(graph: sf.Graph, seed: int = 0) -> list[Tensor]:
    """Results of all operations on (4, 32) positions."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(V, (4, 32), generator=generator)
    u = torch.rand(4, 32, 2, dtype=torch.float64, generator=generator)
    sigma = torch.tensor([0.1, 0.5, 1.0, 3.0])
    x_t = sf.sample_transition(x_0, sigma, graph, u=u)
    log_score = torch.randn(4, 32, graph.dim, generator=generator).requires_grad_()
    loss = sf.score_entropy(log_score, sigma, x_t, x_0, graph)
    loss.sum().backward()
    once = sf.score_entropy_with_grad(log_score, sigma, x_t, x_0, graph, reduction="none")
    step = (log_score, x_t, sigma, sigma * 0.3, graph)
    tokens = [sf.reverse_step(*step, m, u=u) for m in ("analytic", "euler", "denoise")]
    assert log_score.grad is not None
    return [x_t, loss.detach(), log_score.grad, *once, *tokens, sf.reverse_probs(*step).detach()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def fused_head(graph: sf.Graph) -> list[Tensor]:
    """The fused head's loss, gradients and tokens on (4, 64) positions."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(V, (4, 64), generator=generator)
    u = torch.rand(4, 64, 2, dtype=torch.float64, generator=generator)
    x_t = sf.sample_transition(x_0, 1.0, graph, u=u)
    shapes = (4, 64, 16), (graph.dim, 16), (graph.dim,)
    head = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    scaled = graph.kind == "absorbing"
    loss = sf.linear_score_entropy(*head, 1.0, x_t, x_0, graph, scaled, reduction="mean")
    loss.backward()
    step = sf.linear_reverse_step(*head, x_t, 1.0, 0.3, graph, scale_by_sigma=scaled, u=u)
    return [loss.detach(), *(x.grad for x in head if x.grad is not None), step]


@by_graph
@pytest.mark.parametrize("threads", [2, 7])
def test_a_fused_head_is_deterministic_on_many_threads(graph: sf.Graph, threads):
    torch.set_num_threads(threads)
    first = fused_head(graph)
    assert all(same(fused_head(graph), first) for _ in range(8))


@by_graph
def test_any_number_of_threads_gives_identical_results(graph: sf.Graph):
    torch.set_num_threads(1)
    alone = everything(graph)
    for threads in (2, 4, 7):
        torch.set_num_threads(threads)
        assert same(everything(graph), alone)


@by_graph
def test_noise_on_many_tokens_for_any_number_of_threads(graph: sf.Graph):
    x_0 = torch.zeros(64, 1024, dtype=torch.int64)
    u = torch.rand(64, 1024, 2, dtype=torch.float64)
    torch.set_num_threads(1)
    alone = sf.sample_transition(x_0, 0.5, graph, u=u)
    torch.set_num_threads(4)
    assert torch.equal(sf.sample_transition(x_0, 0.5, graph, u=u), alone)


@pytest.mark.parametrize("threads", [1, 2])
def test_concurrent_callers(threads):
    torch.set_num_threads(threads)
    alone = [everything(GRAPHS[seed % 2], seed) for seed in range(4)]

    def caller(seed: int) -> bool:
        torch.set_num_threads(threads)
        with sf.use_backend("cpp"):
            return all(same(everything(GRAPHS[seed % 2], seed), alone[seed]) for _ in range(3))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(caller, range(4)))


def test_backward_on_autograd_threads_of_concurrent_callers():
    torch.set_num_threads(2)

    def caller(name: str) -> list[Tensor]:
        with sf.use_backend(name):
            return [everything(GRAPHS[0], 1)[2] for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        ours, reference = pool.map(caller, ("cpp", "reference"))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


#: Only operations of sedd_fast run after the fork, because torch's threads do not survive it.
FORK = """
import os, signal, torch
import sedd_fast as sf

torch.set_num_threads(2)
graph = sf.Uniform(5000)
x_t, u = torch.randint(5000, (4, 32)), torch.rand(4, 32, 2, dtype=torch.float64)
log_score = torch.randn(4, 32, 5000)

def work():
    loss, _ = sf.score_entropy_with_grad(log_score, 0.5, x_t, x_t, graph, reduction="none")
    return loss.tolist(), sf.reverse_step(log_score, x_t, 0.5, 0.3, graph, u=u).tolist()

with sf.use_backend("cpp"):
    before = work()
    for _ in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if work() == before and work() == before else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 0, f"the child ended with {code}"
        assert work() == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_works_after_its_parent_used_threads():
    """Workers of a data loader are such children. An alarm ends a child that hangs."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
