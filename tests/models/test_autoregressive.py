"""The autoregressive baseline: causality, cache, samples, likelihood, training, files."""

import json

import pytest
import torch

import sedd_fast as sf
from helpers.tiny_models import assert_same_gradients, gradients
from sedd_fast.cli import main
from sedd_fast.evaluate.likelihood import exact_likelihood
from sedd_fast.losses.next_token import NextTokenLoss
from sedd_fast.models import networks
from sedd_fast.models.autoregressive import Autoregressive, draw_token, generate
from sedd_fast.ops._uniforms import uniform
from sedd_fast.training.api import resume, train
from sedd_fast.training.config import load_config

V, L = 5, 6
CONFIG = sf.SEDDConfig(V, hidden_size=16, cond_dim=8, n_blocks=2, n_heads=2, length=L)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    """Weights far from their zero initialisation, so that every path matters."""
    torch.manual_seed(0)
    made = Autoregressive(CONFIG)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made.eval()


def test_size_is_that_of_sedd():
    ar, sedd = (
        sum(p.numel() for p in m.parameters()) for m in (Autoregressive(CONFIG), sf.SEDD(CONFIG))
    )
    assert sedd - ar == CONFIG.hidden_size + 1  # the head's row for the mask


@torch.no_grad()
def test_a_token_depends_only_on_those_before_it(model):
    x = torch.randint(V, (3, L), generator=seeded())
    logits = model(x)
    assert logits.shape == (3, L, V)
    for i in range(L):
        changed = x.clone()
        changed[:, i] = (x[:, i] + 1) % V
        difference = (model(changed) - logits).abs().amax(-1)  # (3, L)
        assert difference[:, : i + 1].max() < 1e-5
        assert i == L - 1 or (difference[:, i + 1] > 1e-4).all()


@torch.no_grad()
def test_the_cache_gives_the_logits_of_a_full_pass(model):
    """With the same uniforms `generate` draws the tokens that full passes draw."""
    drawn = generate(model, (4, L), generator=seeded(3))
    generator, x = seeded(3), torch.zeros(4, L, dtype=torch.int64)
    for i in range(L):
        u = uniform((4, 1), x.device, generator)
        x[:, i : i + 1] = draw_token(model(x)[:, i], 1.0, u)
    assert torch.equal(drawn, x)


@torch.no_grad()
def test_samples_are_distributed_as_the_likelihood(model):
    """Frequencies of all 25 pairs, against exp(-nats), by chi-square."""
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    probs = torch.exp(-exact_likelihood(model, pairs).nats)
    assert float(probs.sum()) == pytest.approx(1, rel=1e-5)
    drawn = generate(model, (20_000, 2), generator=seeded(1))
    counts = torch.bincount(drawn[:, 0] * V + drawn[:, 1], minlength=V * V)
    expected = 20_000 * probs
    assert ((counts - expected).square() / expected.clamp(min=1e-9)).sum() < 52.6  # p = 0.0005


def test_nucleus():
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.05, 0.35]], dtype=torch.float64))

    def nucleus(top_p: float) -> list[float]:
        u = (torch.arange(4000, dtype=torch.float64) + 0.5)[:, None] / 4000
        drawn = draw_token(logits.expand(4000, 4), top_p, u)
        return [round(x, 3) for x in (torch.bincount(drawn[:, 0], minlength=4) / 4000).tolist()]

    assert nucleus(1.0) == [0.1, 0.5, 0.05, 0.35]
    assert nucleus(0.85 - 1e-9) == [0, 0.588, 0, 0.412]
    assert nucleus(0.86) == [0.105, 0.526, 0, 0.368]
    assert nucleus(0.01) == [0, 1, 0, 0]


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        for top_p in (1.0, 0.9):
            drawn = draw_token(logits, top_p, torch.tensor([[u]], dtype=torch.float64))
            assert int(drawn) in (1, 3)


def test_temperature_sharpens(model):
    cold = generate(model, (200, L), temperature=0.01, generator=seeded())
    assert len(cold.unique(dim=0)) < 5
    assert len(generate(model, (200, L), generator=seeded()).unique(dim=0)) > 50


def test_bad_arguments(model):
    for arguments, message in (
        (((2, 0),), "shape must be"),
        (((2, 3), 0.0), r"top_p must lie in \(0, 1\]"),
        (((2, 3), 1.0, 0.0), "temperature must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, *arguments)
    with pytest.raises(TypeError, match="tokens must be int64"):
        model(torch.zeros(3))
    with pytest.raises(ValueError, match=f"blocks holds {V} at position"):
        exact_likelihood(model, torch.full((1, 2), V))
    with pytest.raises(TypeError, match="must be a SEDDConfig"):
        Autoregressive({})


def test_likelihood_is_that_of_the_training_loss(model):
    x = torch.randint(V, (5, L), generator=seeded())
    found = exact_likelihood(model, x, batch_size=2)
    torch.testing.assert_close(found.nats.float(), NextTokenLoss()(model, x))
    assert (found.mode, found.total_stderr, found.total_tokens) == ("likelihood", 0, 5 * L)
    assert found.description == "exact likelihood, nothing is drawn"


# From hidden states


class Sharper(Autoregressive):
    def read(self, *inputs):
        return 2 * super().read(*inputs)


CHANGES = {
    "none": lambda m: None,
    "a hook": lambda m: m.output_layer.linear.register_forward_hook(lambda m, i, out: 2 * out),
    "a subclass": lambda m: setattr(m, "__class__", Sharper),
}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_loss_is_that_of_the_logits(model, change, reduction, calls):
    x = torch.randint(V, (3, L), generator=seeded())
    CHANGES[change](model)
    found = []
    for network in (model, lambda x: model(x)):
        loss = NextTokenLoss(reduction)(network, x)
        loss.sum().backward()
        found.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert_same_gradients(found[0][1], found[1][1])
    fused = "linear_cross_entropy" + "_with_grad" * (reduction == "mean")
    assert calls == [fused] * (change == "none")


def test_no_sequence(model):
    none = torch.zeros(0, L, dtype=torch.int64)
    assert NextTokenLoss()(model, none).shape == (0,)
    assert NextTokenLoss("mean")(model, none).isnan()


def test_the_loss_compiled_whole(model):
    x = torch.randint(V, (3, L), generator=seeded())
    compiled = torch.compile(NextTokenLoss("mean"), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(model, x), NextTokenLoss("mean")(model, x))


# Files


def test_round_trip_and_kinds(model, tmp_path):
    model.save_pretrained(tmp_path / "ar")
    sf.SEDD(CONFIG).save_pretrained(tmp_path / "sedd")
    x = torch.randint(V, (2, L))
    again = networks.load(tmp_path / "ar")
    assert isinstance(again, Autoregressive)
    assert torch.equal(again(x), model(x))
    assert isinstance(networks.load(tmp_path / "sedd"), sf.SEDD)
    with pytest.raises(ValueError, match=r"network Autoregressive, not SEDD; read it with Auto"):
        sf.SEDD.from_pretrained(tmp_path / "ar")
    with pytest.raises(ValueError, match=r"holds the network SEDD, not Autoregressive"):
        Autoregressive.from_pretrained(tmp_path / "sedd")


# Training, and the commands


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ar")
    text = folder / "text.txt"
    text.write_text("the cat sat on a mat. " * 200)
    config = load_config(
        overrides=[
            "model.kind=ar", "model.hidden_size=16", "model.n_heads=2", "model.n_blocks=1",
            "model.length=32", "model.cond_dim=8", "model.dropout=0.0", "training.batch_size=8",
            "training.n_iters=60", "optim.warmup=5", "optim.lr=1e-2", "training.log_freq=5",
            "training.eval_freq=0", "training.snapshot_freq=30", "training.cpu=true",
            "training.ema=0.9", "log.tensorboard=false", f"data.train={text}",
            f"run_dir={folder / 'run'}",
        ]
    )  # fmt: skip
    result = train(config)
    assert result.held_out.nats_per_token < 1.5  # 2.5 at the start: log of 12 tokens
    return result.run_dir


def test_resumes_exactly(run_dir, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000060")
    resume(copy)
    first, second = (networks.load(d / "export").state_dict() for d in (run_dir, copy))
    for name in first:  # up to rounding: the order of sums depends on the threads
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def call(capsys):
    def run(*args):
        capsys.readouterr()
        return main([str(arg) for arg in args]), capsys.readouterr()

    return run


def test_eval_is_exact(run_dir, call):
    code, shown = call("eval", "-m", run_dir, "--json")
    record = json.loads(shown.out)
    assert code == 0
    assert (record["mode"], record["samples"], record["bits_per_token_stderr"]) == (
        "likelihood", 0, 0,
    )  # fmt: skip
    assert record["perplexity"] < 4.5
    assert [record[name] for name in ("times", "seed", "eps")] == [None] * 3
    code, shown = call("eval", "-m", run_dir)
    assert "exact likelihood" in shown.out
    assert "±" not in shown.out
    assert "seed" not in shown.out  # nothing is drawn
    code, shown = call("eval", "-m", run_dir, "--samples", 32)
    assert code == 2
    assert "--samples: the likelihood of an autoregressive model is exact; leave" in shown.err


def test_the_sampling_command_names_the_remedy(run_dir, call):
    code, shown = call("sample", "-m", run_dir)
    assert code == 2
    assert "sedd-fast genppl --model" in shown.err
