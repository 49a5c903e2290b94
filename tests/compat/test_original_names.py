"""compat: every name of the original, its layers, and 16-bit default dtypes."""

import importlib
import math

import pytest
import torch
from torch import nn

from helpers.original_settings import settings
from sedd_fast.compat import graph_lib, losses, noise_lib, sampling
from sedd_fast.compat.model import SEDD, transformer
from sedd_fast.compat.model import fused_add_dropout_scale as fused

NAMES = {
    "catsample": "gumbel_softmax sample_categorical",
    "data": "cycle_loader wt_detokenizer ptb_detokenizer lm1b_detokenizer lambada_detokenizer "
    "get_lambada_test_dataset get_dataset get_dataloaders",
    "graph_lib": "get_graph unsqueeze_as Graph Uniform Absorbing",
    "load_model": "load_model_hf load_model_local load_model",
    "losses": "get_loss_fn get_optimizer optimization_manager get_step_fn",
    "noise_lib": "get_noise Noise GeometricNoise LogLinearNoise",
    "sampling": "register_predictor get_predictor Predictor EulerPredictor NonePredictor "
    "AnalyticPredictor Denoiser get_sampling_fn get_pc_sampler",
    "utils": "load_hydra_config_from_run makedirs get_logger restore_checkpoint save_checkpoint",
    "model": "SEDD",
    "model.ema": "ExponentialMovingAverage",
    "model.fused_add_dropout_scale": "bias_dropout_add_scale get_bias_dropout_add_scale modulate "
    "bias_dropout_add_scale_fused_train bias_dropout_add_scale_fused_inference modulate_fused",
    "model.rotary": "Rotary rotate_half apply_rotary_pos_emb _apply_rotary_pos_emb_torchscript",
    "model.transformer": "modulate LayerNorm residual_linear TimestepEmbedder LabelEmbedder "
    "DDiTBlock EmbeddingLayer DDitFinalLayer SEDD rotary modulate_fused",
    "model.utils": "get_model_fn get_score_fn",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_of_the_original(module):
    found = importlib.import_module(f"sedd_fast.compat.{module}")
    assert not [name for name in NAMES[module].split() if not hasattr(found, name)]


def test_a_network_of_the_layers_is_the_network():
    """The layers under the original's names, put together as the original does."""
    torch.manual_seed(0)
    model = SEDD(settings()).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    c = model.config.model
    blocks = [
        transformer.DDiTBlock(c.hidden_size, c.n_heads, c.cond_dim) for _ in range(c.n_blocks)
    ]
    parts = {
        "vocab_embed": transformer.EmbeddingLayer(c.hidden_size, 8),
        "sigma_map": transformer.TimestepEmbedder(c.cond_dim),
        "rotary_emb": transformer.rotary.Rotary(c.hidden_size // c.n_heads),
        "blocks": nn.ModuleList(blocks),
        "output_layer": transformer.DDitFinalLayer(c.hidden_size, 8, c.cond_dim),
    }
    built = nn.ModuleDict(parts).eval()
    built.load_state_dict(model.state_dict())
    x_t, sigma = torch.randint(8, (2, 6)), torch.tensor([0.3, 2.0])
    x, cond = built.vocab_embed(x=x_t), nn.functional.silu(built.sigma_map(sigma))
    tables = built.rotary_emb(x)
    for block in built.blocks:
        x = block(x, tables, cond)
    log_score = built.output_layer(x, cond) - torch.expm1(sigma).log()[:, None, None] - math.log(7)
    log_score = log_score.scatter(-1, x_t[..., None], 0.0)
    torch.testing.assert_close(log_score, model(x_t, sigma), rtol=1e-4, atol=1e-4)
    for module in (model, block):
        dropout = module._get_bias_dropout_scale()
        torch.testing.assert_close(dropout(x, None, x, x, 0.5), x + x * x)
    with pytest.raises(NotImplementedError, match="seqlens"):
        block(x, tables, cond, seqlens=torch.tensor([0, 6]))


def test_packed_rotary_positions():
    x = torch.randn(2, 5, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = transformer.rotary.Rotary(8)(x)
    assert cos.shape == sin.shape == (1, 5, 3, 1, 8)
    q, k, v = transformer.rotary.apply_rotary_pos_emb(x, cos, sin).unbind(2)
    angle = torch.arange(5.0)[:, None] * 10_000 ** -(torch.arange(4) / 4)
    pair = (
        torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(5, 4), angle)[:, None, None]
    )
    for got, i in ((q, 0), (k, 1)):
        expected = torch.cat((pair[:, :, i].real, pair[:, :, i].imag), -1)
        torch.testing.assert_close(got, expected)
    assert torch.equal(v, x[:, :, 2])
    odd = torch.arange(5.0)
    assert transformer.rotary.rotate_half(odd).tolist() == [-2, -3, -4, 0, 1]


def test_small_functions_of_the_layers():
    x, shift, scale = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    moved = transformer.modulate(x, shift[:, 0], scale[:, 0])
    torch.testing.assert_close(moved, x * (1 + scale[:, :1]) + shift[:, :1])
    torch.testing.assert_close(fused.modulate_fused(x, shift, scale), x * (1 + scale) + shift)
    weight = torch.ones(5, 6)
    linear = transformer.residual_linear(x, weight, torch.ones(2, 4, 5), 0.5)
    torch.testing.assert_close(linear, 1 + 0.5 * x @ weight.T)
    out = fused.bias_dropout_add_scale_fused_inference(x, shift, scale, x, 0.5)
    torch.testing.assert_close(out, x + scale * (x + shift))
    torch.manual_seed(0)
    trained = fused.bias_dropout_add_scale_fused_train(x, None, scale, None, 0.5)
    torch.manual_seed(0)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(trained, scale * dropped)
    embedder = transformer.TimestepEmbedder(4, 7)
    wave = embedder.timestep_embedding(torch.tensor([0.0, 2.0]), 7)
    assert wave[0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert embedder(torch.tensor([1.0])).shape == (1, 4)
    assert transformer.LabelEmbedder(3, 4)(torch.tensor([0, 3])).shape == (2, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_default_dtype_rounds_no_time_and_no_rate(dtype):
    graph, noise = graph_lib.Absorbing(300), noise_lib.LogLinearNoise()
    x_0, seen = torch.zeros(256, 2).long(), []

    class Network(nn.Module):
        def forward(self, x, sigma):
            seen.append(sigma)
            return torch.zeros(*x.shape, 301, dtype=torch.float32)

    def found():
        torch.manual_seed(0)
        loss = losses.get_loss_fn(noise, graph, train=False)(Network(), x_0)
        sampling.get_pc_sampler(graph, noise, (2, 3), "analytic", 300)(Network())
        rows = graph.transition(torch.tensor([3]), torch.tensor([0.5], dtype=dtype))
        uniform = graph_lib.Uniform(300).rate(torch.tensor([3]))
        return [loss, torch.cat(seen), rows, uniform]

    expected = found()
    seen.clear()
    torch.set_default_dtype(dtype)
    try:
        made = found()
    finally:
        torch.set_default_dtype(torch.float32)
    for got, wanted in zip(made, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
