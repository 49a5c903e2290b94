"""The model "sedd_fast" of lm-evaluation-harness: its answers, and the harness's own runs of it."""

import itertools
import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.masked_models import MASK, Saved
from helpers.tiny_models import tiny
from sedd_fast.cli import main
from sedd_fast.data.tokenizers import CharTokenizer
from sedd_fast.text.continuations import Scorer, seed_of

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from sedd_fast.text.lm_eval import HarnessModel, run  # noqa: E402

PAIRS = [
    ("the cat", " sat on a mat"),
    ("the cat", " ran to a tree"),
    ("the cat", " sat"),
    ("it was the ", "dog and it ran"),
    ("", "the dog sat"),
    ("the dog", ""),
]


@pytest.fixture(scope="module")
def model(saved_models: Saved) -> HarnessModel:
    return harness(saved_models("bert"), mc_num=16)


def harness(pretrained: Path, **options: Any) -> HarnessModel:
    return HarnessModel(str(pretrained), trust_remote_code=True, device="cpu", **options)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]  # type: ignore[arg-type]


def values(model: HarnessModel, pairs: list[tuple[str, str]]) -> list[float]:
    found = model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    return [value for value, _ in found]


# Log-likelihoods


def test_loglikelihoods_are_minus_the_bounds(model: HarnessModel):
    network, encode = model.network.model, model.network.tokenizer.encode
    for (context, continuation), found in zip(PAIRS[:4], values(model, PAIRS), strict=False):
        given = encode(context.strip())
        x_0 = torch.tensor([[*given, *encode(continuation)]])
        bound = sf.likelihood_bound(
            network, x_0, network.graph, network.noise, 16, "normalised",
            torch.Generator().manual_seed(seed_of(0, given)),
            loss_mask=torch.arange(x_0.shape[1])[None] >= len(given),
        )  # fmt: skip
        of_one_token = x_0.shape[1] - len(given) == 1  # all samples are equal: two are drawn
        assert found == pytest.approx(-bound.total_nats, rel=1e-6)
        assert bound.total_stderr == 0 if of_one_token else bound.total_stderr > 0


def test_a_single_token_is_exact(model: HarnessModel):
    network, encode = model.network.model, model.network.tokenizer.encode
    x = torch.tensor([[*encode("the cat"), MASK]])
    with torch.no_grad():
        logits = network.network(x).logits[0, -1].double()
    logits[MASK] = -torch.inf
    expected = float(logits.log_softmax(-1)[encode("sat")[0]])
    assert values(model, [("the cat", " sat")])[0] == pytest.approx(expected, rel=1e-5)


def test_near_the_exact_value(saved_models: Saved):
    """Three tokens: every set of masks is enumerated."""
    model = harness(saved_models("llada"), mc_num=512, batch_size=256)
    network, encode = model.network.model, model.network.tokenizer.encode
    given, rest = encode("the cat"), encode("sat on it")
    x_0, exact = torch.tensor([*given, *rest]), 0.0
    places = range(len(given), len(x_0))
    for n in (1, 2, 3):
        subsets = [list(each) for each in itertools.combinations(places, n)]
        for subset in subsets:
            x = x_0.clone()
            x[subset] = MASK
            with torch.no_grad():
                logits = network.network(x[None]).logits[0].double()
            logits[:, MASK] = -torch.inf
            nats = -logits.log_softmax(-1).gather(1, x_0[:, None])[subset].sum()
            exact += float(nats) / n / len(subsets)
    [found] = values(model, [("the cat", " sat on it")])
    error = model.scorer.bound(given, rest).total_stderr
    assert abs(found + exact) < 5 * error < 0.5


def test_neither_the_batch_size_nor_the_order_matters(saved_models: Saved, model: HarnessModel):
    expected = values(model, PAIRS)
    other = harness(saved_models("bert"), mc_num=16, batch_size="5")
    assert values(other, PAIRS[::-1])[::-1] == pytest.approx(expected, rel=1e-5)
    assert values(model, PAIRS[2:3]) == expected[2:3]
    assert values(harness(saved_models("bert"), mc_num=16, seed=1), PAIRS) != expected


def test_answers_of_one_question_share_their_noise(saved_models: Saved):
    """The difference of equal answers has no error; other questions have other numbers."""
    model = harness(saved_models("bert"), mc_num=4)
    same = values(model, [("the cat", " sat on a mat")] * 2)
    assert same[0] == same[1]
    assert seed_of(0, [1, 2]) != seed_of(0, [1, 3]) != seed_of(1, [1, 3])


def test_empty_and_long_texts(saved_models: Saved, model: HarnessModel):
    found = model.loglikelihood(asked("loglikelihood", ("the dog", "")), disable_tqdm=True)
    assert found == [(0.0, False)]
    short = harness(saved_models("bert"), mc_num=8, max_length=5)
    long = [("the dog ran to the cat", " sat on a mat"), ("cat", " sat on a mat")]
    cut, alone = values(short, long)
    assert cut == pytest.approx(  # with the random numbers of the whole context
        -short.scorer.bound(
            short.tok_encode("the dog ran to the cat"), short.tok_encode("sat on a mat")
        ).total_nats
    )
    assert short.scorer.shortened([1, 2, 3], 4) == [3]
    assert cut != alone
    with pytest.raises(ValueError, match="max_length: expected 1 to 5 tokens"):
        values(short, [("the", " cat sat on a mat and it")])


def test_rolling_likelihoods_are_those_of_windows(saved_models: Saved):
    model = harness(saved_models("bert"), mc_num=8, max_length=4)
    text = "the cat sat on a mat and it was the dog"
    [found] = model.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)), True)
    tokens, total = model.tok_encode(text), 0.0
    for start in (0, 4, 8):
        window = tokens[start : start + 4]
        total += Scorer(model.network, 8, max_length=4, seed=seed_of(0, window)).bound(
            [], window
        ).total_nats  # fmt: skip
    assert found == pytest.approx(-total)
    assert model.loglikelihood_rolling(asked("loglikelihood_rolling", ("",)), True) == [0.0]


def test_greedy_decoding(saved_models: Saved):
    """The surest position first, not the leftmost one; for these networks that often differs."""
    model = harness(saved_models("llada"), mc_num=4, check_greedy=True)
    network, differs = model.network.model, []
    for word in ("cat", "dog", "tree", "mat", "it", "was"):
        given = model.tok_encode(f"the {word}")
        by_order = {}
        for order in ("surest", "leftmost"):
            x = torch.tensor([[*given, MASK, MASK, MASK]])
            while (masked := x[0] == MASK).any():
                with torch.no_grad():
                    logits = network.network(x).logits[0].double()
                logits[:, MASK] = -torch.inf
                p, token = logits.softmax(-1).max(-1)
                rank = p if order == "surest" else -torch.arange(len(p)).double()
                at = int(rank.masked_fill(~masked, -torch.inf).argmax())
                x[0, at] = token[at]
            by_order[order] = x[0, len(given) :].tolist()
        assert model.scorer.is_greedy(given, by_order["surest"])
        differs.append(by_order["surest"] != by_order["leftmost"])
        assert model.scorer.is_greedy(given, by_order["leftmost"]) != differs[-1]
    assert any(differs)
    pairs = asked("loglikelihood", ("the cat", " sat"), ("the cat", ""))
    assert [greedy for _, greedy in model.loglikelihood(pairs, True)][1]


# Networks of this package


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_networks_of_this_package(graph: str, tmp_path: Path):
    tiny(graph).eval().save_pretrained(tmp_path)
    CharTokenizer("abcdefgh ").save(tmp_path)
    model = HarnessModel(str(tmp_path), mc_num=16, device="cpu", method="analytic", steps=4)
    assert model.scorer.mode == ("normalised" if graph == "absorbing" else "exact")
    network = model.network.model
    x_0 = torch.tensor([model.tok_encode("ab cd")])
    bound = sf.likelihood_bound(
        network, x_0, network.graph, network.noise, 16, model.scorer.mode,
        torch.Generator().manual_seed(seed_of(0, x_0[0, :2].tolist())),
        loss_mask=torch.tensor([[False, False, True, True, True]]),
    )  # fmt: skip
    assert values(model, [("ab", " cd")])[0] == pytest.approx(-bound.total_nats, rel=1e-5)
    [text] = model.generate_until(asked("generate_until", ("ab", {"max_gen_toks": 6})), True)
    assert len(text) <= 6
    if graph == "uniform":
        with pytest.raises(ValueError, match="check_greedy"):
            model.scorer.is_greedy([0], [1])


# Samples


def generated(model: HarnessModel, *asks: tuple[str, dict[str, Any]]) -> list[str]:
    return model.generate_until(asked("generate_until", *asks), disable_tqdm=True)


def test_generated_texts(saved_models: Saved):
    model = harness(saved_models("mdlm"), gen_length=6, batch_size=2)
    asks = [(text, {"do_sample": True, "temperature": 1.0}) for text in
            ("the cat", "the dog sat on", "it was", "the cat")]  # fmt: skip
    whole = generated(model, *asks)
    assert whole[0] != whole[3]  # the same request again is another sample
    assert [generated(model, one)[0] for one in asks[:3]] == whole[:3]
    assert generated(model, *asks[::-1])[1:3] == whole[1:3][::-1]
    first = next(text for text in whole if len(text.split()) > 1)
    stop = first.split()[1]
    asks[whole.index(first)][1]["until"] = [stop, "no such word"]
    cut = generated(model, *asks)[whole.index(first)]
    assert cut == first.partition(stop)[0]
    assert model.network.tokenizer.eot is not None
    assert "<eos>" not in "".join(whole)


def test_greedy_samples_and_temperatures(saved_models: Saved):
    model = harness(saved_models("llada"), gen_length=4)
    for kwargs in ({}, {"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}):
        config = model._config_of(kwargs)
        assert config.top_p < 1e-6 or config.temperature == 0
    assert model._config_of({"do_sample": True, "temperature": 0.7}).temperature == 0.7
    assert model._config_of({"temperature": 0.7, "top_p": 0.9}).top_p == 0.9
    fixed = harness(saved_models("llada"), temperature=0.5, steps=3)
    assert fixed._config_of({"do_sample": False}).temperature == 0.5
    assert fixed._config_of({"do_sample": False}).steps == 3
    other = harness(saved_models("llada"), gen_length=1, seed=5)
    one = harness(saved_models("llada"), gen_length=1)
    assert generated(one, ("the cat", {})) == generated(other, ("the cat", {}))  # the likeliest


def test_a_long_context_is_cut_on_the_left(saved_models: Saved):
    model = harness(saved_models("bert"), max_length=8)
    request = model._gap_after("the cat sat on a mat", {"max_gen_toks": 5})
    assert request.placed == [(0, model.tok_encode("on a mat"))]
    assert (request.length, request.prompt_length) == (8, 3)
    with pytest.raises(ValueError, match="max_length"):
        model._gap_after("the cat", {"max_gen_toks": 9})


# Settings


def test_wrong_settings(saved_models: Saved, tmp_path: Path):
    path = saved_models("bert")
    for options, part in (
        ({"method": "best"}, "method"),
        ({"mc_num": 1}, "mc_num"),
        ({"batch_size": "many"}, "batch_size"),
        ({"gen_length": 0}, "gen_length"),
        ({"dtype": "int8"}, "dtype"),
        ({"temperature": -1.0}, "temperature"),
    ):
        with pytest.raises(ValueError, match=part):
            harness(path, **options)
    assert harness(path, batch_size="auto:4").scorer.batch_size == 16
    with pytest.raises(ValueError, match="pretrained"):
        HarnessModel()


def test_chat_templates(saved_models: Saved, model: HarnessModel):
    chat = [{"role": "user", "content": "the cat"}]
    with pytest.raises(ValueError, match="has no chat template"):
        model.apply_chat_template(chat)
    other = harness(saved_models("bert"), mc_num=4)
    other.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} it{% endif %}"
    )
    assert other.apply_chat_template(chat) == "user the cat it"
    assert other.chat_template(True) == other.tokenizer.chat_template
    assert "/" not in other.tokenizer_name


# The harness


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a multiple-choice task and one of generated texts, with their data."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": "the cat", "choices": ["sat on a mat", "ran to it", "was"], "answer": 0},
        {"question": "the dog ran", "choices": ["to a tree", "and sat"], "answer": 1},
        {"question": "it was a", "choices": ["cat", "dog"], "answer": 1},
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        f"  cache_dir: {folder / 'cache'}\ntest_split: test\nmetadata:\n  version: 1\n"
    )
    (folder / "choices.yaml").write_text(
        f'task: tiny_choices\n{shared}output_type: multiple_choice\ndoc_to_text: "{{{{question}}}}"'
        "\ndoc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
        "  - metric: acc_norm\n"
    )
    (folder / "texts.yaml").write_text(
        f'task: tiny_texts\n{shared}output_type: generate_until\ndoc_to_text: "{{{{question}}}}"\n'
        'doc_to_target: "{{choices[0]}}"\ngeneration_kwargs:\n  until: ["mat"]\n  max_gen_toks: 5\n'
        "  do_sample: false\nmetric_list:\n  - metric: exact_match\n"
    )
    return folder


def test_a_run_of_the_harness(saved_models: Saved, tasks: Path, model: HarnessModel):
    assert get_model("sedd_fast") is HarnessModel
    found = lm_eval.simple_evaluate(
        model="sedd_fast",
        model_args={"pretrained": str(saved_models("bert")), "mc_num": 16, "device": "cpu"},
        tasks=["tiny_choices", "tiny_texts"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        batch_size=4,
    )
    samples = found["samples"]["tiny_choices"]
    right = []
    for sample in samples:
        doc = sample["doc"]
        pairs = [(doc["question"], f" {choice}") for choice in doc["choices"]]
        expected = values(model, pairs)
        answers = [float(response[0][0]) for response in sample["resps"]]
        assert answers == pytest.approx(expected, rel=1e-5)
        right.append(answers.index(max(answers)) == doc["answer"])
    assert found["results"]["tiny_choices"]["acc,none"] == pytest.approx(sum(right) / 3)
    for sample in found["samples"]["tiny_texts"]:
        [[text]] = sample["resps"]
        assert "mat" not in text
        kwargs = {"until": ["mat"], "max_gen_toks": 5, "do_sample": False}
        assert text == generated(model, (sample["doc"]["question"], kwargs))[0]


def test_the_command_passes_its_arguments_on(
    saved_models: Saved,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    # Without the harness's own tasks, thousands of files that take half a minute to read.
    init = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", init)
    arguments = [
        "run", "--model", "sedd_fast", "--tasks", "tiny_choices", "--include_path", str(tasks),
        "--batch_size", "8", "--device", "cpu", "--output_path", str(tmp_path),
        "--model_args", f"pretrained={saved_models('mdlm')},trust_remote_code=True,mc_num=4",
    ]  # fmt: skip
    assert main(["lm-eval", *arguments]) == 0
    assert "tiny_choices" in capsys.readouterr().out
    [file] = tmp_path.rglob("results*.json")
    record = json.loads(file.read_text())
    assert record["config"]["model"] == "sedd_fast"
    assert 0 <= record["results"]["tiny_choices"]["acc,none"] <= 1
    assert main(["lm-eval", "run", "--help"]) == 0
    assert "usage: lm-eval run" in capsys.readouterr().out
    assert main(["lm-eval", "no-such-command"]) == 2
    with pytest.raises(SystemExit):
        run(["run", "--no-such-option"])
