"""Muon: the update has the gradient's singular vectors, and is that of torch's own Muon."""

from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_run import losses, settings, write_letters
from sedd_fast.training import saved_state
from sedd_fast.training.api import resume, train
from sedd_fast.training.muon import Muon, orthogonalised
from sedd_fast.training.step import Learner


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 20), (4, 24, 6)])
def test_singular_values_become_about_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, before, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ orthogonalised(matrices) @ v.mT  # diagonal: the singular vectors stay
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-4
    large = before > 0.01 * before.square().sum(-1, keepdim=True).sqrt()
    assert large.sum() > before.numel() // 2
    assert ((values[large] > 0.6) & (values[large] < 1.3)).all()


def test_a_gradient_of_zeros_changes_nothing():
    assert not orthogonalised(torch.zeros(2, 3, 4)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torch(decay):
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(s, generator=generator) for s in ((6, 9), (9, 6), (6, 9))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(3)]
    results = []
    for cls in (Muon, torch.optim.Muon):
        matrices = [torch.nn.Parameter(p.clone()) for p in start]
        optimizer = cls(matrices, lr=0.1, momentum=0.9, weight_decay=decay)
        for step in gradients:
            for p, grad in zip(matrices, step, strict=True):
                p.grad = grad.clone()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in matrices]))
    moved = (results[0] - torch.cat([p.flatten() for p in start])).norm()
    assert (results[0] - results[1]).norm() < 0.03 * moved  # torch's is in bfloat16


def test_only_matrices():
    with pytest.raises(ValueError, match=r"shape \(3,\); give the other parameters to AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_a_parameter_without_gradient_stays():
    moved, kept = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    moved.grad = torch.eye(2)
    Muon([moved, kept]).step()
    assert (moved != 1).any()
    assert (kept == 1).all()


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    return write_letters(tmp_path_factory.mktemp("text") / "letters.txt")


def test_a_run_resumes_as_if_never_stopped(text_file, tmp_path):
    chosen = ["optim.type=muon", "optim.schedule=constant", "optim.weight_decay=0.01"]
    whole = train(settings(text_file, tmp_path / "whole", *chosen, "training.n_iters=6"))
    train(settings(text_file, tmp_path / "parts", *chosen, "training.n_iters=3"))
    resume(tmp_path / "parts", ["training.n_iters=6"])
    runs = [losses(path) for path in (whole.run_dir, tmp_path / "parts")]
    kept = [[entry for entry in run if not entry[1].startswith("held_out")] for run in runs]
    assert kept[0] == kept[1]
    state = torch.load(whole.checkpoint / "state.pt", weights_only=True)
    matrices = len(state["muon"]["state"])
    assert matrices == 4  # qkv, out and two of the MLP in one block
    assert len(state["optimizer"]["state"]) == len(state["model"]) - 1 - matrices  # inv_freq
    like = [torch.zeros(3, 3)] * matrices
    for wrong in (torch.zeros(2, 2), torch.full((1,), torch.nan), None):
        state["muon"]["state"][0]["momentum_buffer"] = wrong
        with pytest.raises(ValueError, match=r"muon\.state\.0\.momentum_buffer"):
            saved_state.moments(state, "muon", like, 6)


def test_fp16_is_refused(text_file, tmp_path):
    config = settings(text_file, tmp_path / "run", "optim.type=muon")
    scaled = SimpleNamespace(device=torch.device("cpu"), scaler=object())
    with pytest.raises(ValueError, match=r"optim\.type: muon cannot be trained in fp16.*bf16"):
        Learner(config, 12, scaled)
