"""The network: parity with the original's outputs, loss and gradients; dtypes, compile, errors."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import sedd_fast as sf
from sedd_fast.backends.coefficients import log_expm1
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.sedd import SEDD

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {"hidden_size": 16, "cond_dim": 8, "length": 12, "n_blocks": 2, "n_heads": 2}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "model.safetensors")


def tiny(graph: str = "absorbing", vocab_size: int = 11, **settings) -> SEDD:
    """A small network with random weights: at initialisation its scores would all be 0."""
    torch.manual_seed(0)
    settings = {**TINY, "scale_by_sigma": graph == "absorbing", **settings}
    model = SEDD(SEDDConfig(vocab_size, graph, **settings)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def tiny_input(model: SEDD, batch: int = 3, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.randint(model.graph.dim, (batch, length))
    return indices, torch.linspace(0.01, 5, batch)


@pytest.mark.parametrize(
    ("name", "directory"),
    [("absorb", "absorb-hf"), ("uniform", "uniform-hf"), ("local_run", "local-run")],
)
def test_log_score_equals_the_original(golden, name, directory):
    model = SEDD.from_pretrained(GOLDEN / directory)
    log_score = model(golden[f"{name}.indices"], golden[f"{name}.sigma"])
    assert log_score.dtype == torch.float32
    assert relative(log_score, golden[f"{name}.log_score"]) < 1e-5


@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_loss_and_gradients_equal_the_original(golden, name):
    model = SEDD.from_pretrained(GOLDEN / f"{name}-hf")
    objective = sf.ScoreEntropyLoss(model.graph, model.noise)
    t, x_t = golden[f"{name}.t"], golden[f"{name}.perturbed"]
    loss = objective(model, golden[f"{name}.batch"], t=t, x_t=x_t)
    torch.testing.assert_close(loss, golden[f"{name}.loss"], rtol=1e-4, atol=0)

    loss.mean().backward()
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    torch.testing.assert_close(norms, golden[f"{name}.grad_norm"], rtol=1e-4, atol=0)
    full = {k: v for k, v in model.named_parameters() if f"{name}.grad.{k}" in golden}
    assert len(full) == 3
    for key, p in full.items():
        assert relative(p.grad, golden[f"{name}.grad.{key}"]) < 1e-4, key


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_state_dict_has_the_published_names_and_shapes(graph):
    published = load_file(GOLDEN / f"{graph}-hf" / "model.safetensors")
    ours = SEDD.from_pretrained(GOLDEN / f"{graph}-hf").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in published.items()}


def test_parameters_come_in_the_order_of_the_original():
    saved = torch.load(GOLDEN / "local-run/checkpoints-meta/checkpoint.pth", weights_only=True)
    model = SEDD.from_pretrained(GOLDEN / "local-run")
    assert list(model.state_dict()) == list(saved["model"])


@pytest.mark.parametrize(("graph", "vocab_size"), [("absorbing", 101), ("uniform", 101)])
def test_a_network_at_initialisation_has_the_loss_of_a_uniform_guess(graph, vocab_size):
    torch.manual_seed(0)
    config = SEDDConfig(vocab_size, graph, scale_by_sigma=graph == "absorbing", **TINY)
    model = SEDD(config)
    x_0 = torch.randint(vocab_size, (640, 32))  # the mean loss has a standard deviation of 1 %
    with torch.no_grad():
        raw = model.output_layer.linear(model.features(x_0, torch.ones(640)))
        assert raw.abs().max() == 0
        if graph == "absorbing":  # 1/t * masked * ln V, and t is stratified: L * ln V on average
            objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean", sampling_eps=0.05)
            loss = objective(model, x_0, generator=torch.Generator().manual_seed(1))
            expected = 0.999 * 32 * math.log(vocab_size)
            assert loss.item() == pytest.approx(expected, rel=0.05)


def test_log_score_is_zero_at_the_current_token_and_takes_no_gradient_there():
    model = tiny()
    indices, sigma = tiny_input(model)
    log_score = model(indices, sigma)
    assert torch.all(log_score.gather(-1, indices[..., None]) == 0)
    log_score.gather(-1, indices[..., None]).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_log_score_is_the_scaled_head_elsewhere():
    model = tiny()
    indices, sigma = tiny_input(model)
    head = model.output_layer.linear(model.features(indices, sigma)).double()
    expected = head - torch.log(torch.expm1(sigma.double()))[:, None, None] - math.log(11)
    expected.scatter_(-1, indices[..., None], 0.0)
    torch.testing.assert_close(model(indices, sigma).double(), expected, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_every_parameter():
    model = tiny().train()
    model(*tiny_input(model)).square().sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_log_expm1_is_exact_from_tiny_to_huge_sigma():
    sigma = torch.tensor([1e-30, 1e-5, 0.3, 0.7, 5.0, 20.0, 300.0])
    exact = [math.log(math.expm1(s)) for s in sigma.double().tolist()]
    exact = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(log_expm1(sigma).double(), exact, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_autocast_gives_fp32_log_scores_close_to_fp32(graph, dtype, tolerance):
    model = tiny(graph)
    indices, sigma = tiny_input(model)
    exact = model(indices, sigma)
    with torch.autocast("cpu", dtype):
        log_score = model(indices, sigma)
    assert log_score.dtype == torch.float32
    assert 0 < relative(log_score, exact) < tolerance  # 0 would mean that autocast did nothing


def test_sigma_is_embedded_in_fp32_under_autocast():
    model = tiny()
    sigma = torch.tensor([1.0, 1.001])
    with torch.autocast("cpu", torch.bfloat16):
        embedded = model.sigma_map(sigma)
    assert torch.equal(embedded, model.sigma_map(sigma))


def test_training_step_under_autocast_gives_fp32_gradients():
    model = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*tiny_input(model)).square().mean()
    loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float64, 1e-5)])
def test_whole_network_in_another_dtype(dtype, tolerance):
    model = tiny()
    indices, sigma = tiny_input(model)
    exact, frequencies = model(indices, sigma), model.rotary_emb.inv_freq.clone()
    log_score = model.to(dtype)(indices, sigma)
    assert log_score.dtype == torch.promote_types(dtype, torch.float32)
    assert relative(log_score, exact.double()) < tolerance
    assert torch.equal(model.rotary_emb.inv_freq, frequencies)  # not rounded to bf16


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_compiled_whole_equals_eager(graph):
    model = tiny(graph, n_blocks=1)
    indices, sigma = tiny_input(model)
    eager = model(indices, sigma)
    eager.square().mean().backward()
    expected = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()

    compiled = torch.compile(model, fullgraph=True)(indices, sigma)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    compiled.square().mean().backward()
    for key, p in model.named_parameters():
        assert relative(p.grad, expected[key]) < 1e-4, key


def test_exported_graph_equals_the_network():
    model = tiny()
    indices, sigma = tiny_input(model)
    program = torch.export.export(model, (indices, sigma))
    torch.testing.assert_close(program.module()(indices, sigma), model(indices, sigma))


def test_attention_is_bidirectional_and_positions_matter():
    model = tiny()
    indices, sigma = tiny_input(model, batch=1)
    last = indices.clone()
    last[0, -1] = (last[0, -1] + 1) % 11
    assert not torch.allclose(model(indices, sigma)[0, 0], model(last, sigma)[0, 0])
    swapped = model.features(indices.flip(1), sigma).flip(1)
    assert not torch.allclose(model.features(indices, sigma), swapped, atol=1e-4)


def test_sequences_do_not_see_each_other():
    model = tiny()
    indices, sigma = tiny_input(model)
    alone = torch.cat([model(indices[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(indices, sigma), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "length"), [(2, 1), (1, 57), (0, 5)])
def test_any_length_and_batch(batch, length):
    model = tiny()  # made for length 12
    assert model(*tiny_input(model, batch, length)).shape == (batch, length, 12)


@pytest.mark.parametrize("vocab_size", [2, 37, 1009])
@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_any_vocabulary(graph, vocab_size):
    model = tiny(graph, vocab_size)
    log_score = model(*tiny_input(model))
    assert log_score.shape[-1] == model.graph.dim
    assert log_score.isfinite().all()


def test_sigma_may_be_a_column_or_a_scalar():
    model = tiny()
    indices, sigma = tiny_input(model)
    assert torch.equal(model(indices, sigma), model(indices, sigma[:, None]))
    assert torch.equal(model(indices, sigma[1]), model(indices, sigma[1].expand(3)))


def test_dropout_acts_in_training_only():
    model = tiny(dropout=0.5)
    inputs = tiny_input(model)
    assert torch.equal(model(*inputs), model(*inputs))
    model.train()
    assert not torch.allclose(model(*inputs), model(*inputs))


class VocabularyTensors(TorchDispatchMode):
    """Counts the new tensors of the size of the log scores, as autograd saves and makes them."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.made = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {_storage(t) for t in tree_flatten((args, kwargs))[0] if torch.is_tensor(t)}
        for t in tree_flatten(out)[0]:
            if torch.is_tensor(t) and t.numel() == self.numel and _storage(t) not in given:
                self.made.append(str(func))
        return out


def _storage(t: torch.Tensor) -> int:
    return t.untyped_storage().data_ptr()


def test_one_vocabulary_tensor_forward_and_one_backward():
    model = tiny(vocab_size=1000).train()
    indices, sigma = tiny_input(model)
    upstream = torch.ones(3, 12, 1001)
    with VocabularyTensors(upstream.numel()) as forward:
        log_score = model(indices, sigma)
    with VocabularyTensors(upstream.numel()) as backward:
        log_score.backward(upstream)
    assert forward.made == ["aten.addmm.default"]
    assert backward.made == ["aten.scatter.value"]  # the gradient, zeroed at the current token


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 20, "n_heads": 3}, "hidden_size=20, n_heads=3; take a multiple of 6"),
        ({"hidden_size": 15, "n_heads": 5}, "even head width"),
        ({"n_blocks": 0}, "n_blocks must be a positive int, got 0"),
        ({"hidden_size": 64.0}, "hidden_size must be a positive int, got 64.0"),
        ({"graph": "absorb"}, "'absorbing', 'uniform', got 'absorb'"),
        ({"graph": "uniform"}, "set scale_by_sigma=False"),
        ({"noise": "cosine"}, "'loglinear', 'geometric', got 'cosine'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SEDDConfig(**{"vocab_size": 11, **settings})


def test_settings_of_another_type_are_refused():
    with pytest.raises(TypeError, match="config must be a SEDDConfig, got dict"):
        SEDD({"tokens": 11})


@pytest.mark.parametrize(
    ("indices", "sigma", "error", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2), TypeError, "indices must be int64"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.ones(2), TypeError, r"with \.long\(\)"),
        (torch.zeros(3, dtype=torch.long), torch.ones(1), ValueError, r"\(B, L\), got \(3,\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.ones(3), ValueError, r"\(2,\).* got \(3,\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.ones(2).long(), TypeError, "sigma must be fl"),
        (torch.zeros(2, 3, dtype=torch.long), torch.ones(2, device="meta"), ValueError, "on meta"),
        (torch.full((2, 3), 12), torch.ones(2), ValueError, r"\[0, 12\), got 12 to 12"),
        (torch.full((2, 3), -1), torch.ones(2), ValueError, r"\[0, 12\), got -1 to -1"),
    ],
)
def test_wrong_input_is_named(indices, sigma, error, message):
    with pytest.raises(error, match=message):
        tiny()(indices, sigma)
