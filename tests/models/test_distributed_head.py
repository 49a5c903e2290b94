"""The fused head under DDP and FSDP2: two processes, the losses and gradients of one."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import sedd_fast as sf
from sedd_fast.models import overrides
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.sedd import SEDD

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
WORLD, BATCH, STEPS = 2, 6, 3
#: (graph, reduction of the loss): a graph with compacted rows and one without.
CASES = (("absorbing", "mean"), ("uniform", "none"))
WRAPPERS = ("ddp", "fsdp2")


def network(graph: str) -> SEDD:
    torch.manual_seed(0)
    config = SEDDConfig(
        vocab_size=37, graph=graph, hidden_size=16, cond_dim=8, length=8, n_blocks=2, n_heads=2,
        dropout=0.0, scale_by_sigma=graph == "absorbing",
    )  # fmt: skip
    model = SEDD(config)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def batches(graph: sf.Graph, noise: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(x_0, t, x_t) of every step, for all processes."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(STEPS):
        x_0 = torch.randint(37, (BATCH, 8), generator=generator)
        t = torch.linspace(0.1, 0.95, BATCH)
        made.append((x_0, t, sf.sample_transition(x_0, noise.sigma(t), graph, generator)))
    return made


def train(model: nn.Module, plain: SEDD, part: slice, reduction: str) -> dict[str, Any]:
    """Losses of every step, and the gradients of the first, of a part of every batch."""
    objective = sf.ScoreEntropyLoss(plain.graph, plain.noise, reduction)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses, first = [], {}
    for x_0, t, x_t in batches(plain.graph, plain.noise):
        loss = objective(model, x_0[part], t=t[part], x_t=x_t[part]).mean()
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


def wrap(model: SEDD, wrapper: str) -> nn.Module:
    if wrapper == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for block in model.blocks:
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
    found = {}
    for wrapper in WRAPPERS:
        for graph, reduction in CASES:
            plain = network(graph)
            calls = count_fused(plain)
            seen = train(wrap(plain, wrapper), plain, part, reduction)
            dist.all_reduce(seen["losses"])
            seen["losses"] /= WORLD
            found[wrapper, graph] = {**seen, "calls": calls[0]}
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def count_fused(model: SEDD) -> list[int]:
    """How many forward calls had a request, that is, used the fused head."""
    calls = [0]

    def count(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[0] += len(inputs) > 2 or "head" in kwargs

    # As if torch had set the hook: those of a user are not called with requests.
    overrides._TRANSPARENT = (*overrides._TRANSPARENT, __name__.partition(".")[0])
    model.register_forward_pre_hook(count, with_kwargs=True)
    return calls


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """The results of two processes, which are started once for all tests."""
    folder = tmp_path_factory.mktemp("two-processes")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize(("graph", "reduction"), CASES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_learn_as_one(found, wrapper, graph, reduction):
    plain = network(graph)
    expected = train(plain, plain, slice(None), reduction)
    seen = found[wrapper, graph]
    assert seen["calls"] == STEPS
    torch.testing.assert_close(seen["losses"], expected["losses"], rtol=1e-5, atol=1e-5)
    assert seen["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        scale = float(gradient.abs().max())
        off = float((seen["gradients"][name] - gradient).abs().max())
        assert off <= 1e-4 * scale, (name, off, scale)
