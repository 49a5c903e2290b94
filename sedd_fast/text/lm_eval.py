"""The model "sedd_fast" of lm-evaluation-harness.

    python -m sedd_fast.text.lm_eval run --model sedd_fast --tasks arc_easy --batch_size 32 \
        --model_args pretrained=GSAI-ML/LLaDA-8B-Base,trust_remote_code=True,dtype=bfloat16

runs the harness's own command line, all arguments passed on; `sedd-fast lm-eval ARGS` is the same.
Importing this module registers the model for ``lm_eval.simple_evaluate(model="sedd_fast")``.

Source: lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness), ``lm_eval.api.model``.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, get_args

from sedd_fast.data.hub_tokenizers import TransformersTokenizer
from sedd_fast.extras import import_library
from sedd_fast.names import DECODING_METHODS, METHODS, AdapterName, Method, Precision, Times
from sedd_fast.ops._arguments import check_bool, check_choice, check_count
from sedd_fast.sampling import SamplerConfig
from sedd_fast.text.answers import AnswerDecoder
from sedd_fast.text.continuations import Scorer, seed_of
from sedd_fast.text.drawing import draw
from sedd_fast.text.network import check_no_mask, load_network
from sedd_fast.text.requests import Request

_USER = "sedd_fast.text.lm_eval"
TemplateLM: Any = import_library("lm_eval.api.model", "lm-eval", _USER).TemplateLM
register_model: Any = import_library("lm_eval.api.registry", "lm-eval", _USER).register_model

NAME = "sedd_fast"
#: Tokens of a generated text where neither the model nor the task says how many, as the harness has
#: it, and the names under which a task says it.
MAX_GEN_TOKS = 256
_MAX_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
#: Sequences at a time where the harness is asked to find their number.
_BATCH_SIZE = 16
#: Keeps the likeliest token alone, where a sampler takes no temperature 0.
_LEAST_TOP_P = 1e-9

T = TypeVar("T")


@register_model(NAME)
class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness may not be installed
    """A diffusion network as the harness calls it.

    Log-likelihoods are estimates of lower bounds: minus the bound of the continuation given its
    context (:class:`sedd_fast.text.continuations.Scorer`). A question's answers share their random
    numbers. No special token is put before a text; an empty context is none.

    Args:
        pretrained: what :func:`sedd_fast.load` takes.
        adapter, trust_remote_code, tokenizer, device, dtype: as there.
        batch_size: sequences at a time; "auto": 16. Results do not depend on it, up to rounding.
        max_batch_size: not used.
        mc_num: noise levels of each request, at least 2.
        times: how they are drawn: "balanced", "stratified", or "antithetic" (mc_num a multiple of
            4).
        max_length: most tokens of context and continuation; None: the network's default length.
            Not above the network's number of positions.
        check_greedy: find out whether greedy decoding gives a continuation, which takes a network
            call a token, for the absorbing graph. False: no continuation counts as greedy.
        seed: random seed for noise and samples.
        gen_length: tokens of a generated text; None: as the task says, else 256.
        method: sampler; None: "confidence" for the absorbing graph, "analytic" for the uniform one.
        steps, temperature, top_p, block_length, threshold, entropy_bound, guidance: of the sampler
            (:class:`sedd_fast.sampling.SamplerConfig`); those that are given. Without steps: one
            position at a time; 128 steps for the uniform graph and for methods that need a number.
            `temperature` and `top_p` go before those of a task.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; the message names it.

    Example:
        >>> import lm_eval, sedd_fast.text.lm_eval
        >>> lm_eval.simple_evaluate(
        ...     "sedd_fast", model_args={"pretrained": "runs/book", "mc_num": 64}, tasks=["sciq"]
        ... )
    """

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: AdapterName | None = None,
        trust_remote_code: bool | str = False,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: Precision = "float32",
        batch_size: int | str = _BATCH_SIZE,
        max_batch_size: int | None = None,
        mc_num: int = 128,
        times: Times = "balanced",
        max_length: int | None = None,
        check_greedy: bool | str = False,
        seed: int = 0,
        gen_length: int | None = None,
        method: Method | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        block_length: int | None = None,
        threshold: float | None = None,
        entropy_bound: float | None = None,
        guidance: float | None = None,
    ) -> None:
        super().__init__()
        if pretrained is None:
            raise ValueError("pretrained: none is given; add --model_args pretrained=NAME")
        check_choice("dtype", dtype, get_args(Precision))
        check_choice("times", times, get_args(Times))
        check_count("mc_num", mc_num, 2)
        if times == "antithetic" and mc_num % 4:
            raise ValueError(f"mc_num must be a multiple of 4 with times=antithetic, got {mc_num}")
        trusted = _flag("trust_remote_code", trust_remote_code)
        self.check_greedy = _flag("check_greedy", check_greedy)
        place = "auto" if device is None else str(device)
        self.network = load_network(str(pretrained), tokenizer, place, dtype, adapter, trusted)
        graph, config = self.network.model.graph, self.network.model.config
        longest = config.length
        if max_length is not None:
            most = getattr(config, "most_tokens", None)
            longest = check_count("max_length", max_length)
            if most is not None and longest > most:
                raise ValueError(
                    f"max_length: the network has positions for {most} tokens, got {longest}"
                )
        self.scorer = Scorer(self.network, mc_num, times, _whole_batch(batch_size), longest, seed)
        if self.check_greedy and graph.mask_index is None:
            raise ValueError(
                f"check_greedy: greedy decoding is defined for the absorbing graph, got {graph}; "
                "leave it out"
            )
        self.gen_length = None if gen_length is None else check_count("gen_length", gen_length)
        self.temperature = temperature
        given = {
            "steps": steps, "top_p": top_p, "block_length": block_length, "threshold": threshold,
            "entropy_bound": entropy_bound, "guidance": guidance,
        }  # fmt: skip
        self.sampler = _sampler_options(method, given, graph.mask_index is not None)
        for each in (1.0, 0.0) if temperature is None else (temperature,):
            self._config(each).check_graph(graph)
        self._has_warned = False
        #: What TemplateLM.chat_template asks.
        backend = self.network.tokenizer
        self.tokenizer = backend.backend if isinstance(backend, TransformersTokenizer) else None
        self._device = self.network.device
        self._answers = AnswerDecoder(self.network)

    @property
    def eot_token_id(self) -> int | None:
        """End-of-text; None where the vocabulary has none."""
        return self.network.tokenizer.eot

    @property
    def max_length(self) -> int:
        """Most tokens of context and continuation."""
        return self.scorer.max_length

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return self.network.tokenizer_name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Token ids of exactly this text, without special tokens.

        Raises:
            ValueError: the mask is among them.
        """
        tokens = self.network.tokenizer.encode_corpus([string])[0]
        check_no_mask(self.network, tokens)
        return tokens

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as the tokenizer's chat template writes them."""
        tokenizer: Any = self.tokenizer
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"apply_chat_template: the tokenizer ({self.network.tokenizer_name}) has no chat "
                "template; leave --apply_chat_template out, or name a tokenizer of transformers "
                "that has one: tokenizer=transformers:NAME"
            )
        return str(
            tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Minus the bound of each continuation in nats, and whether greedy decoding gives it."""
        encoded = []
        for request in requests:
            context, continuation = request.args
            if context == "":
                pair: tuple[list[int], list[int]] = ([], self.tok_encode(continuation))
            else:
                pair = self._encode_pair(context, continuation)
                if continuation and not pair[1]:  # a merge of tokens over the border
                    pair = (self.tok_encode(context), self.tok_encode(continuation))
            if continuation and not pair[1]:
                raise ValueError(
                    f"the continuation {continuation!r} has no token under the tokenizer "
                    f"({self.network.tokenizer_name}); leave it out of the task, or take another"
                )
            encoded.append((request.args, *pair))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        answers = []
        for args, context, continuation in _shown(requests, "loglikelihood", disable_tqdm):
            answer = (0.0, self.check_greedy)  # of an empty text
            if continuation:
                nats = self.scorer.bound(context, continuation).total_nats
                greedy = self.check_greedy and self.scorer.is_greedy(context, continuation)
                answer = (-nats, greedy)
            self.cache_hook.add_partial("loglikelihood", args, answer)
            answers.append(answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Minus the bound of each text in nats, in windows of ``max_length`` tokens."""
        answers = []
        for request in _shown(requests, "loglikelihood_rolling", disable_tqdm):
            answer = -self.scorer.bound_of_text(self.tok_encode(request.args[0]))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
            answers.append(answer)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that fills a gap after each context, up to the first of its stop strings.

        With a tokenizer of transformers the text also ends at the first special token.

        A sample depends on the seed, the context, the gap and how often the same request stands
        before it in the list; not on the batch size or on other requests.
        """
        answers: dict[int, str] = {}
        groups: dict[SamplerConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._config_of(request.args[1]), []).append(number)
        for config, numbers in groups.items():
            given = [self._gap_after(*requests[number].args) for number in numbers]
            before: Counter[str] = Counter()
            seeds = []
            for request in given:
                known = [token for _, tokens in request.placed for token in tokens]
                key = repr((known, request.length))
                seeds.append(seed_of(self.scorer.seed, known, [request.length, before[key]]))
                before[key] += 1
            # The longest first, neighbours of equal length: little or no padding.
            order = sorted(range(len(given)), key=lambda i: -given[i].length)
            drawn = draw(
                [given[i] for i in order], self.network, config, 1, [seeds[i] for i in order],
                self.scorer.batch_size,
            )  # fmt: skip
            shown = _shown(zip(order, drawn, strict=True), "generate", disable_tqdm, len(order))
            for i, (request, sample) in shown:
                args = requests[numbers[i]].args
                tokens = sample.tokens[request.prompt_length :]
                text = self._answers.decode(tokens, args[1].get("until"))
                self.cache_hook.add_partial("generate_until", args, text)
                answers[numbers[i]] = text
        return [answers[number] for number in range(len(requests))]

    def _gap_after(self, context: str, kwargs: dict[str, Any]) -> Request:
        """The request of a gap after a context, of which the start is left out if it is long."""
        asked = [kwargs[name] for name in _MAX_NAMES if kwargs.get(name) is not None]
        gap = self.gen_length or int(next(iter(asked), MAX_GEN_TOKS))
        tokens = self.tok_encode(context)
        most = self.max_length - bool(tokens)
        if not 1 <= gap <= most:
            name = "gen_length" if self.gen_length else "gen_length (of the task: max_gen_toks)"
            raise ValueError(
                f"{name}: expected 1 to {most} tokens to generate, which leaves a token of context "
                f"within max_length={self.max_length}, got {gap}; give a smaller gen_length, or "
                "raise max_length"
            )
        known = list(self.scorer.shortened(tokens, gap))
        placed = [(0, known)] if known else []
        return Request(placed, len(known) + gap, prompt_length=len(known))

    def _config_of(self, kwargs: dict[str, Any]) -> SamplerConfig:
        """The sampler of a request: greedy unless the model or the task has a temperature."""
        if kwargs.get("top_k") and not self._has_warned:
            warnings.warn("the task's top_k is ignored: samplers here have top_p", stacklevel=2)
            self._has_warned = True
        asked, do_sample = kwargs.get("temperature"), kwargs.get("do_sample")
        temperature = 1.0 if asked is None else float(asked)
        if not (bool(asked) if do_sample is None else do_sample):
            temperature = 0.0
        if self.temperature is not None:
            temperature = self.temperature
        return self._config(temperature, kwargs.get("top_p"))

    def _config(self, temperature: float, top_p: float | None = None) -> SamplerConfig:
        """The sampler with a temperature; 0 keeps the likeliest token of each position."""
        options = dict(self.sampler)
        if top_p is not None:
            options.setdefault("top_p", float(top_p))
        if temperature == 0 and options["method"] not in DECODING_METHODS:
            return SamplerConfig(**{**options, "top_p": _LEAST_TOP_P})
        if temperature == 0:
            options.pop("top_p", None)  # the likeliest token is in every nucleus
        return SamplerConfig(**options, temperature=temperature)


def run(arguments: Sequence[str]) -> None:
    """The harness's command line with these arguments; it knows the model "sedd_fast".

    Raises:
        SystemExit: what the harness's own parser makes of wrong arguments and of --help.
    """
    cli_evaluate = import_library("lm_eval.__main__", "lm-eval", _USER).cli_evaluate
    before = sys.argv
    sys.argv = ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def _whole_batch(batch_size: int | str) -> int:
    """The number of sequences at a time; the harness may give it as text, or as "auto"."""
    text = str(batch_size)
    if text.startswith("auto"):
        return _BATCH_SIZE
    if not text.isdecimal():
        raise ValueError(f"batch_size: expected a number or auto, got {batch_size!r}")
    return check_count("batch_size", int(text))


def _flag(name: str, value: object) -> bool:
    """A bool; the harness's parser of arguments may leave one as text."""
    text = value.lower() if isinstance(value, str) else None
    return text == "true" if text in ("true", "false") else check_bool(name, value)


def _sampler_options(
    method: Method | None, given: dict[str, Any], has_mask: bool
) -> dict[str, Any]:
    """The options of a sampler that are given; without steps one position at a time, if it can."""
    if method is None:
        method = "confidence" if has_mask else "analytic"
    check_choice("method", method, METHODS)
    options = {"method": method, **{name: x for name, x in given.items() if x is not None}}
    if has_mask and (method == "hit" or method in DECODING_METHODS):
        options.setdefault("steps", None)
    return options


def _shown(items: Iterable[T], label: str, disable: bool, total: int | None = None) -> Iterator[T]:
    """The items, counted on stderr as the harness does."""
    tqdm = import_library("tqdm", "lm-eval", _USER).tqdm
    return iter(tqdm(items, desc=f"sedd_fast {label}", disable=disable, total=total))


if __name__ == "__main__":
    run(sys.argv[1:])
