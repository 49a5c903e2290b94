"""Masked language models of Hugging Face: those of transformers, and stand-ins for three others."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sedd_fast as sf
from helpers.masked_models import MASK, SIZES, STATES, Saved, save_tokenizer
from sedd_fast.models.hugging_face import MaskedLanguageModel

pytest.importorskip("transformers")

KINDS = ("llada", "dream", "mdlm", "bert", "roberta", "modernbert")
by_kind = pytest.mark.parametrize("kind", KINDS)
B, L = 3, 7
NOISE = sf.LogLinearNoise()
T = torch.tensor([0.3, 0.6, 1.0])


@pytest.fixture
def load(saved_models: Saved) -> Callable[..., MaskedLanguageModel]:
    """`load("llada", ...)`: the network of that kind, with more settings of its config."""

    def load(kind: str, dtype: Any = "float32", **settings: Any) -> MaskedLanguageModel:
        path = saved_models(kind, **settings)
        return MaskedLanguageModel.from_pretrained(path, trust_remote_code=True, dtype=dtype)

    return load


def tokens(model: MaskedLanguageModel, length: int = L) -> Tensor:
    """Clean tokens (B, length): any but the mask, and none of RoBERTa's padding."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(1, model.graph.vocab_size, (B, length), generator=generator)
    return drawn + (drawn >= model.graph.mask_index)


def noised(model: MaskedLanguageModel, x_0: Tensor) -> Tensor:
    return sf.sample_transition(x_0, NOISE.sigma(T), model.graph, torch.Generator().manual_seed(2))


def raw_logits(model: MaskedLanguageModel, x: Tensor, sigma: Tensor, **given: Tensor) -> Tensor:
    """The network's own logits; of Dream moved by one position."""
    adapter, network = model.config.adapter, model.network
    out = (network(x, sigma, **given) if adapter == "mdlm" else network(x, **given)).logits
    return torch.cat((out[:, :1], out[:, :-1]), 1) if adapter == "dream" else out


def plain(model: MaskedLanguageModel) -> sf.PosteriorModel:
    """The same network without hidden states."""
    return sf.PosteriorModel(lambda x, s: raw_logits(model, x, s)[..., :STATES], model.graph)


class Logits(TorchDispatchMode):
    """How often an operation returned a tensor (., ., states)."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            self.count += isinstance(x, Tensor) and x.dim() == 3 and x.shape[-1] == STATES
        return out


# The same values as from logits, and no logits


@by_kind
@torch.no_grad()
def test_cross_entropies_are_those_of_the_logits(kind: str, load):
    model = load(kind)
    assert model.fused
    x_0 = tokens(model)
    x_t = noised(model, x_0)
    objective = sf.MaskedCrossEntropy(model.graph, model.noise)
    with Logits() as by_hidden_states:
        found = objective(model, x_0, t=T, x_t=x_t)
    with Logits() as by_logits:
        expected = objective(plain(model), x_0, t=T, x_t=x_t)
    assert by_hidden_states.count == 0 < by_logits.count
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    logits = (
        raw_logits(model, x_t, NOISE.sigma(T))
        .double()
        .index_fill(-1, torch.tensor(model.graph.mask_index), -torch.inf)
    )
    nats = nn.functional.cross_entropy(logits.transpose(1, 2), x_0, reduction="none")
    by_hand = (nats * (x_t == model.graph.mask_index)).sum(1) / T
    torch.testing.assert_close(found.double(), by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llada", "dream", "mdlm", "modernbert"])
def test_samples_are_those_of_the_logits_and_form_none(kind: str, load):
    model = load(kind)
    drawn = []
    for network in (model, plain(model)):
        with Logits() as formed:
            generator = torch.Generator().manual_seed(3)
            drawn.append(
                sf.sample(network, model.graph, model.noise, (2, L), 4, "hit", generator=generator)
            )
        assert (formed.count == 0) == (network is model)
    assert torch.equal(*drawn)
    assert not (drawn[0] == model.graph.mask_index).any()


def exact_bound(model: MaskedLanguageModel, x_0: Tensor, evaluated: list[int]) -> float:
    """The bound by enumeration of all masked subsets of some positions of one sequence."""
    mask, total = model.graph.mask_index, 0.0
    for n in range(1, len(evaluated) + 1):
        subsets = [list(each) for each in itertools.combinations(evaluated, n)]
        x_t = x_0.repeat(len(subsets), 1)
        for row, positions in zip(x_t, subsets, strict=True):
            row[positions] = mask
        logits = raw_logits(model, x_t, torch.ones(len(x_t))).double()
        logits[..., mask] = -torch.inf
        nats = nn.functional.cross_entropy(
            logits.transpose(1, 2), x_0.expand_as(x_t), reduction="none"
        )
        total += float((nats * (x_t == mask)).sum(1).mean()) / n
    return total


@pytest.mark.parametrize("kind", ["llada", "dream", "mdlm", "bert"])
@torch.no_grad()
def test_bounds_agree_with_the_enumeration_of_all_masks(kind: str, load):
    model = load(kind, **({"time_conditioning": False} if kind == "mdlm" else {}))
    x_0 = tokens(model, 4)[:1]
    for evaluated in ([0, 1, 2, 3], [1, 3]):
        loss_mask = torch.zeros(1, 4, dtype=torch.bool)
        loss_mask[0, evaluated] = True
        bound = sf.likelihood_bound(
            model, x_0, model.graph, model.noise, 128, "normalised", batch_size=128,
            generator=torch.Generator().manual_seed(4), loss_mask=loss_mask,
        )  # fmt: skip
        exact = exact_bound(model, x_0, evaluated)
        assert abs(float(bound.nats) - exact) < 5 * float(bound.stderr)
        assert float(bound.stderr) < 0.1 * exact


def test_dreams_logits_are_moved_by_one_position(load):
    model = load("dream")
    x = torch.full((1, 4), MASK)
    own = model.network(x).logits
    score = model(x, torch.ones(1))
    ratios = score[0, 1:] - own[0, :-1]
    real = torch.arange(STATES) != MASK
    torch.testing.assert_close(ratios[:, real], ratios[:, :1].expand(-1, STATES - 1))


def test_mdlm_is_given_the_noise_level(load):
    model = load("mdlm")
    x = torch.full((2, 5), model.graph.mask_index)
    score = model(x, torch.tensor([0.5, 3.0])).log_softmax(-1)
    assert not torch.allclose(score[0], score[1], atol=1e-3)


# What is read from the settings


@pytest.mark.parametrize(
    ("kind", "settings", "mask", "length"),
    [
        ("llada", {}, MASK, 64),
        ("dream", {}, MASK, 1024),
        ("dream", {"max_position_embeddings": 5, "mask_token_id": 7}, 7, 5),
        ("mdlm", {}, STATES - 1, 48),
        ("mdlm", {"mask_token_id": 7}, 7, 48),
        ("bert", {}, MASK, 64),
        ("roberta", {}, MASK, 63),  # positions are counted from pad_token_id + 1
    ],
)
def test_mask_and_length(kind: str, settings: dict[str, int], mask: int, length: int, load):
    model = load(kind, **settings)
    assert model.graph == sf.Absorbing(STATES - 1, mask)
    assert (model.config.length, model.config.vocab_size) == (length, STATES)
    if length < 64:
        assert model(torch.full((1, length), mask), torch.ones(1)).shape[1] == length


@torch.no_grad()
def test_rows_of_the_head_that_pad_it_have_no_probability(load):
    model = load("llada", embedding_size=STATES + 8)
    x = torch.full((1, 5), MASK)
    assert model.graph.dim == STATES
    assert model(x, torch.ones(1)).shape == (1, 5, STATES)
    x_0 = tokens(model)
    objective = sf.MaskedCrossEntropy(model.graph, model.noise)
    x_t = noised(model, x_0)
    torch.testing.assert_close(
        objective(model, x_0, t=T, x_t=x_t), objective(plain(model), x_0, t=T, x_t=x_t)
    )


@torch.no_grad()
def test_weights_have_the_precision_asked_for(load):
    for kind in ("llada", "mdlm", "bert"):
        full, half = load(kind), load(kind, dtype="bfloat16")
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
        assert half.fused
        x_0 = tokens(full)
        objective, x_t = sf.MaskedCrossEntropy(full.graph, full.noise), noised(full, x_0)
        exact = objective(full, x_0, t=T, x_t=x_t)
        assert half.reads_padding == full.reads_padding
        for is_enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
                torch.testing.assert_close(
                    objective(half, x_0, t=T, x_t=x_t), exact, rtol=0.05, atol=0.05
                )


# Heads that are not plain


@pytest.mark.parametrize(
    ("settings", "fused"),
    [({"weight_tying": True}, False), ({"scale_logits": True}, True)],
    ids=["tied", "scaled"],
)
@torch.no_grad()
def test_other_heads_of_llada(settings: dict[str, bool], fused: bool, load):
    """A factor commutes with a head without bias; a tied head is no layer of its own."""
    model = load("llada", **settings)
    assert model.fused == fused
    x_0 = tokens(model)
    objective, x_t = sf.MaskedCrossEntropy(model.graph, model.noise), noised(model, x_0)
    torch.testing.assert_close(
        objective(model, x_0, t=T, x_t=x_t), objective(plain(model), x_0, t=T, x_t=x_t)
    )


@pytest.mark.parametrize("change", ["capped", "reads the head's weight"])
@torch.no_grad()
def test_networks_that_change_their_logits(change: str, load):
    from transformers.modeling_outputs import MaskedLMOutput

    network = load("bert").network

    class Changed(type(network)):  # type: ignore[misc]
        def forward(self, *args: Any, **given: Any) -> Any:
            logits = super().forward(*args, **given).logits
            if change == "capped":
                return MaskedLMOutput(logits=2 * torch.tanh(logits / 2))
            return MaskedLMOutput(logits=logits * self.get_output_embeddings().weight.abs().max())

    network.__class__ = Changed
    model = MaskedLanguageModel(network, "masked_lm", MASK)
    assert not model.fused
    x_0 = tokens(model)
    objective, x_t = sf.MaskedCrossEntropy(model.graph, model.noise), noised(model, x_0)
    torch.testing.assert_close(
        objective(model, x_0, t=T, x_t=x_t), objective(plain(model), x_0, t=T, x_t=x_t)
    )


def test_the_head_is_put_back_after_an_error(load):
    model = load("llada")
    head = model.network.get_output_embeddings()
    objective = sf.MaskedCrossEntropy(model.graph, model.noise)
    x_0 = tokens(model)
    model.network.model.transformer.wte.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        objective(model, x_0)
    assert model.network.get_output_embeddings() is head
    assert isinstance(head, nn.Linear)


# Padding


@pytest.mark.parametrize("kind", ["llada", "dream", "bert", "roberta", "modernbert"])
@torch.no_grad()
def test_a_padded_sequence_has_the_bound_that_it_has_alone(kind: str, load):
    model = load(kind)
    assert model.reads_padding
    x_0, mask = tokens(model), torch.ones(B, L, dtype=torch.int64)
    mask[1, 4:] = 0

    def bound(x: Tensor, attention_mask: Tensor | None) -> Tensor:
        return sf.likelihood_bound(
            model, x, model.graph, model.noise, 8, "normalised",
            generator=torch.Generator().manual_seed(0), attention_mask=attention_mask,
        ).nats  # fmt: skip

    found = bound(x_0, mask)
    assert float(found[0]) == pytest.approx(float(bound(x_0[:1], None)[0]), rel=1e-5)
    alone = bound(torch.cat((x_0[:1, :4], x_0[1:2, :4])), None)  # the second row's numbers
    assert float(found[1]) == pytest.approx(float(alone[1]), rel=1e-5)


@pytest.mark.parametrize(("kind", "settings"), [("mdlm", {}), ("llada", {"ignores_padding": True})])
@torch.no_grad()
def test_padding_is_refused_where_the_network_reads_it(kind: str, settings: Any, load):
    model = load(kind, **settings)
    assert not model.reads_padding
    x, sigma = torch.full((2, 5), model.graph.mask_index), torch.ones(2)
    mask = torch.ones(2, 5, dtype=torch.int64)
    torch.testing.assert_close(model(x, sigma, attention_mask=mask), model(x, sigma))
    mask[1, 3:] = 0
    with pytest.raises(ValueError, match=r"attention_mask: the network .* batch size of 1"):
        model(x, sigma, attention_mask=mask)


# Errors


def test_code_beside_the_weights_is_not_run_unless_trusted(saved_models: Saved):
    with pytest.raises(ValueError, match="--trust-remote-code"):
        MaskedLanguageModel.from_pretrained(saved_models("llada"))


def test_adapters_are_found_or_listed(saved_models: Saved, tmp_path: Path):
    assert sf.load(saved_models("bert"), adapter="masked_lm").model.config.adapter == "masked_lm"
    assert sf.load(saved_models("bert")).model.config.adapter == "masked_lm"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"'gpt2'.*llada, dream, mdlm, masked_lm"):
        sf.load(tmp_path)
    with pytest.raises(ValueError, match="adapter must be one of"):
        sf.load(saved_models("bert"), adapter="bert")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a network of this package.*leave it out"):
        sf.load(adapter="llada")


def test_a_mask_must_be_named(saved_models: Saved):
    unnamed = saved_models("llada", mask_token_id=None)
    for file in unnamed.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"mask_index: neither config.json"):
        MaskedLanguageModel.from_pretrained(unnamed, trust_remote_code=True)
    given = MaskedLanguageModel.from_pretrained(unnamed, trust_remote_code=True, mask_index=9)
    assert given.graph.mask_index == 9
    with pytest.raises(ValueError, match=r"mask_index .*0 \.\. 23"):
        MaskedLanguageModel.from_pretrained(unnamed, trust_remote_code=True, mask_index=STATES)


def test_a_tokenizer_must_be_there_or_named(saved_models: Saved, tmp_path: Path):
    folder = Path(shutil.copytree(saved_models("mdlm"), tmp_path / "mdlm"))
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match="tokenizer: none beside the weights"):
        sf.load(folder, trust_remote_code=True)
    model = sf.load(folder, trust_remote_code=True, tokenizer=saved_models("bert"))
    assert model.tokenizer.vocab_size < model.model.config.vocab_size
    with pytest.raises(ValueError, match="257 tokens, the model only 24"):
        sf.load(folder, trust_remote_code=True, tokenizer="bytes")


def test_weights_must_be_whole(saved_models: Saved, tmp_path: Path):
    network = MaskedLanguageModel.from_pretrained(saved_models("bert")).network
    network.bert.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"lack \d+ weights of BertForMaskedLM \(cls"):
        sf.load(tmp_path, adapter="masked_lm")


def test_a_network_without_a_head_is_refused():
    from transformers import BertConfig, BertModel

    body = BertModel(BertConfig(vocab_size=STATES, **SIZES))
    with pytest.raises(ValueError, match="expected logits of shape"):
        MaskedLanguageModel(body, "masked_lm", MASK)
