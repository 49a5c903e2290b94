"""Files that ask for too much or are of a wrong form: one line, and nothing is allocated."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sedd_fast.compat import load_model
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.ema import ExponentialMovingAverage
from sedd_fast.models.networks import load
from sedd_fast.models.sedd import SEDD

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(
    params=[SEDD.from_pretrained, load, lambda path: load_model.load_model(path, "cpu")]
)
def read(request):
    """The functions that read a network."""
    return request.param


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """The largest tensors, in numbers, that layers were given memory for."""
    sizes: list[int] = []
    linear = torch.nn.Linear.__init__

    def watched(self, *args, **options):
        linear(self, *args, **options)
        sizes.extend(p.numel() for p in self.parameters() if not p.is_meta)

    monkeypatch.setattr(torch.nn.Linear, "__init__", watched)
    return sizes


def refused(read, path: Path, message: str | None = None) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def change(published: Path, key: str, value) -> None:
    settings = json.loads((published / "config.json").read_text())
    *above, last = key.split(".")
    section = settings["config"]
    for name in above:
        section = section[name]
    section[last] = value
    (published / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.hidden_size", 8192, r"size mismatch for .* and \d+ more"),
        ("model.hidden_size", 10**7, "more than 2.40 parameters"),
        ("model.cond_dim", 10**6, "size mismatch for sigma_map"),
        ("model.cond_dim", 2**31, "more than 2.40 parameters"),
        ("model.mlp_ratio", 10**6, "size mismatch"),
        ("tokens", 10**9, "size mismatch for vocab_embed"),
        ("model.n_blocks", 10**7, "ask for 10000000 blocks, but its weights are those of 2"),
        ("model.n_blocks", 100, r"Missing keys: .* and \d+ more"),
    ],
)
def test_settings_larger_than_the_weights_allocate_nothing(
    published, made, read, key, value, message
):
    change(published, key, value)
    refused(read, published, message)
    assert made == []


COUNTS = [None, True, -1, 0, 1.5, "x", [], {}, [[]], 10**400, 2**63]
NAMES = [None, 1, [], {}, "x" * 10**5]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("tokens", COUNTS),
        *[(f"model.{key}", COUNTS) for key in ("hidden_size", "n_blocks", "n_heads", "mlp_ratio")],
        *[(f"model.{key}", COUNTS) for key in ("length", "cond_dim")],
        ("model.dropout", [None, True, -1, 1, 1e999, "x", [], 10**400]),
        ("noise.eps", [None, False, 0, 1, -1e999, "x", 10**400]),
        ("noise.sigma_max", [None, True, 1e999, "x", {}, 10**400]),
        ("model.scale_by_sigma", [None, 0, 1, "true", []]),
        *[(key, NAMES) for key in ("graph.type", "noise.type", "model.type")],
        *[(section, [None, 1, "x", [], {}]) for section in ("model", "graph", "noise")],
    ],
)
def test_wrong_settings_are_refused(published, key, values):
    before = (published / "config.json").read_text()
    for value in values:
        (published / "config.json").write_text(before)
        change(published, key, value)
        refused(SEDD.from_pretrained, published)


def header(change) -> bytes:
    content = (GOLDEN / "absorb-hf/model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + size])
    change(tensors["vocab_embed.embedding"])
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        (10**8).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        *[
            header(lambda tensor, entry=entry: tensor.update(entry))
            for entry in (
                {"shape": [10**9, 10**9]}, {"shape": [2**64, 1]}, {"shape": []},
                {"dtype": "I32"}, {"dtype": "F4"}, {"dtype": "x"}, {"data_offsets": [0, 2**63]},
            )
        ],
    ],
)  # fmt: skip
def test_wrong_safetensors_are_refused(published, content):
    (published / "model.safetensors").write_bytes(content)
    refused(SEDD.from_pretrained, published, "model.safetensors|Missing keys")


def test_expanded_weights_are_refused_before_they_are_copied(published, made):
    shapes = {
        name: value.shape for name, value in load_file(published / "model.safetensors").items()
    }
    (published / "model.safetensors").unlink()
    torch.save(
        {k: torch.zeros(1).expand(s) for k, s in shapes.items()}, published / "pytorch_model.bin"
    )
    refused(SEDD.from_pretrained, published, "was saved expanded")
    assert made == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden_size: 32", "hidden_size: 8192", "size mismatch"),
        ("hidden_size: 32", "hidden_size: .inf", "must be a positive int, got inf"),
        ("dropout: 0.1", "dropout: .nan", "must be a finite number, got nan"),
        ("tokens: 37", "tokens: ${nothing}", "cannot be resolved"),
        ("tokens: 37", "tokens: ${tokens}", "cannot be resolved"),
        ("tokens: 37", "tokens: ${", "cannot be resolved"),
        ("\nmodel:", "\nmodel: x\nother:", "model must hold settings"),
        ("tokens: 37", "tokens: 37\ntokens: 38", "twice"),
    ],
)
def test_wrong_settings_of_a_run_are_refused(run, read, old, new, message):
    path = run / ".hydra/config.yaml"
    path.write_text(path.read_text().replace(old, new))
    refused(read, run, message)


def test_settings_of_a_run_may_refer_to_each_other(run):
    path = run / ".hydra/config.yaml"
    path.write_text(path.read_text().replace("length: 24", "length: ${sampling.steps}"))
    assert SEDD.from_pretrained(run).config.length == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(ema=[1]),
        lambda s: s.update(model=[1]),
        lambda s: s.update(model={1: torch.zeros(1)}),
        lambda s: s.pop("ema"),
        lambda s: s["ema"].update(shadow_params=5),
        lambda s: s["ema"].update(shadow_params=["a"] * 30),
        lambda s: s["ema"].update(shadow_params=[torch.zeros(1).expand(10**12)] * 30),
        lambda s: s["ema"].update(shadow_params=[v.int() for v in s["ema"]["shadow_params"]]),
        lambda s: s["ema"].update(shadow_params=[v.to_sparse() for v in s["ema"]["shadow_params"]]),
    ],
)
def test_malformed_states_of_a_run_are_refused(run, change):
    path = run / "checkpoints-meta/checkpoint.pth"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    refused(SEDD.from_pretrained, run, "checkpoint.pth")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decay", float("nan"), "decay must lie in"),
        ("decay", "0.9", "decay must lie in"),
        ("num_updates", -1, "num_updates must be a count"),
        ("num_updates", 2.5, "num_updates must be a count"),
        ("shadow_params", None, "must be a list of tensors"),
        ("shadow_params", [0.0], "must be a list of tensors"),
    ],
)
def test_a_malformed_average_is_refused_and_changes_nothing(key, value, message):
    ema = ExponentialMovingAverage([torch.nn.Parameter(torch.ones(3))], 0.9)
    state = {"decay": 0.5, "num_updates": 4, "shadow_params": [torch.zeros(3)]}
    with pytest.raises(ValueError, match=message):
        ema.load_state_dict(state | {key: value})
    assert (ema.decay, ema.num_updates, ema.shadow_params[0].sum()) == (0.9, 0, 3)
    with pytest.raises(ValueError, match="not the state of an EMA"):
        ema.load_state_dict([1])


@pytest.mark.parametrize("setting", [{"dropout": True}, {"noise_eps": 10**400}, {"graph": 1}])
def test_settings_of_a_wrong_type_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SEDDConfig(5, **setting)


def test_tied_weights_are_saved_under_each_name(tmp_path):
    model = SEDD(SEDDConfig(5, hidden_size=8, cond_dim=8, n_blocks=2, n_heads=1))
    model.output_layer.linear.weight = model.vocab_embed.embedding
    # And views of one tensor, with and without an overlap.
    memory = torch.nn.Parameter(torch.randn(20))
    model.blocks[0].norm1.weight = torch.nn.Parameter(memory.detach()[:8])
    model.blocks[0].norm2.weight = torch.nn.Parameter(memory.detach()[4:12])
    model.blocks[1].norm1.weight = torch.nn.Parameter(memory.detach()[12:])
    model.save_pretrained(tmp_path)
    again = SEDD.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.output_layer.linear.weight is not again.vocab_embed.embedding
