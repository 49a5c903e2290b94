"""Fused heads under DDP and FSDP2: two processes, the losses and gradients of one."""

import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import sedd_fast as sf
from helpers import exposed
from sedd_fast.backends import registry
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.config import SEDDConfig

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
WORLD, BATCH, STEPS, SIZE = 2, 6, 3, 37
NOISE = sf.LogLinearNoise()
WRAPPERS = ("ddp", "fsdp2")
KINDS = {"sedd": sf.SEDD, "posterior": sf.PosteriorSEDD, "ar": Autoregressive}
FUSED = ("linear_score_entropy", "linear_cross_entropy")


class Case(NamedTuple):
    """A network and its objective: ``kind`` of KINDS, or a PosteriorModel of hidden states."""

    kind: str
    graph: str
    objective: Any
    reduction: str

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        if self.kind not in KINDS:
            return exposed.models("tied and capped")[0]
        config = SEDDConfig(
            vocab_size=SIZE, graph=self.graph, hidden_size=16, cond_dim=8, length=8, n_blocks=2,
            n_heads=2, dropout=0.0, scale_by_sigma=self.graph == "absorbing",
        )  # fmt: skip
        model = KINDS[self.kind](config)
        for p in model.parameters():
            nn.init.normal_(p, std=0.2)
        return model

    def losses(self, model: nn.Module, part: slice) -> Iterator[Tensor]:
        """The loss of every step, of a part of every batch."""
        size = exposed.V if self.kind not in KINDS else SIZE
        graph = sf.Absorbing(size) if self.graph == "absorbing" else sf.Uniform(size)
        generator = torch.Generator().manual_seed(1)
        t = torch.linspace(0.1, 0.95, BATCH)
        for _ in range(STEPS):
            x_0 = torch.randint(size, (BATCH, 8), generator=generator)
            x_t = sf.sample_transition(x_0, NOISE.sigma(t), graph, generator)
            if self.kind == "ar":
                yield self.objective(self.reduction)(model, x_0[part])
            else:
                objective = self.objective(graph, NOISE, self.reduction)
                yield objective(model, x_0[part], t=t[part], x_t=x_t[part]).mean()


#: Score entropy of a graph with compacted rows and of one without; cross entropies.
CASES = {
    "absorbing": Case("sedd", "absorbing", sf.ScoreEntropyLoss, "mean"),
    "uniform": Case("sedd", "uniform", sf.ScoreEntropyLoss, "none"),
    "cross entropy": Case("posterior", "absorbing", sf.MaskedCrossEntropy, "mean"),
    "hidden states": Case("exposed", "absorbing", sf.MaskedCrossEntropy, "none"),
    "next token": Case("ar", "absorbing", sf.losses.NextTokenLoss, "mean"),
}


def train(case: Case, model: nn.Module, plain: nn.Module, part: slice) -> dict[str, Any]:
    """Losses of every step, and the gradients of the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses, first = [], {}
    for loss in case.losses(model, part):
        loss.backward()
        first = first or {name: whole(p.grad) for name, p in plain.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "gradients": first}


def whole(gradient: Tensor | None) -> Tensor:
    """A gradient, gathered from its shards where it is sharded."""
    from torch.distributed.tensor import DTensor

    assert gradient is not None
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def wrap(model: nn.Module, wrapper: str) -> nn.Module:
    if wrapper == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def worker(rank: int, folder: str) -> None:
    """Run every case in one process; the first process saves its results."""
    torch.set_num_threads(1)
    if sys.platform == "linux":  # the name of the machine need not resolve then
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        timeout=timedelta(minutes=5),
    )  # fmt: skip
    part = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    found, calls = {}, count_fused()
    for wrapper in WRAPPERS:
        for name, case in CASES.items():
            calls.clear()
            plain = case.network()
            seen = train(case, wrap(plain, wrapper), plain, part)
            dist.all_reduce(seen["losses"])
            seen["losses"] /= WORLD
            found[wrapper, name] = {**seen, "calls": len(calls)}
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def count_fused() -> list[str]:
    """The names of the fused operations that are to run in this process."""
    seen: list[str] = []
    module = registry.module(registry.choose("cpu"))

    def counted(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: seen.append(run.__name__) or run(*args)  # type: ignore[func-returns-value]

    for name in (*FUSED, *(f"{name}_with_grad" for name in FUSED)):
        setattr(module, name, counted(getattr(module, name)))
    return seen


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """The results of two processes, which are started once for all tests."""
    folder = tmp_path_factory.mktemp("two-processes")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_learn_as_one(found, wrapper, name):
    plain = CASES[name].network()
    expected = train(CASES[name], plain, plain, slice(None))
    seen = found[wrapper, name]
    assert seen["calls"] in (STEPS, 2 * STEPS)  # the backward of "none" may run one too
    torch.testing.assert_close(seen["losses"], expected["losses"], rtol=1e-5, atol=1e-5)
    assert seen["gradients"].keys() == expected["gradients"].keys()
    for parameter, gradient in expected["gradients"].items():
        scale = float(gradient.abs().max())
        off = float((seen["gradients"][parameter] - gradient).abs().max())
        assert off <= 1e-4 * scale, (parameter, off, scale)
