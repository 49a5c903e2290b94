"""The names that options and settings take: each list once, as a type and as a tuple of its values.

Signatures have the type, so that type checkers and editors know the values; checks at run time, the
settings of a training and the command line read the tuple or the type. This module imports nothing
heavy.
"""

from typing import Literal, get_args

BackendName = Literal["reference", "cpp", "triton", "cuda"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

#: The noise processes, and the same with the original code's name of the first.
GraphKind = Literal["absorbing", "uniform"]
GRAPHS: tuple[GraphKind, ...] = get_args(GraphKind)
GraphName = Literal["absorbing", "absorb", "uniform"]
GRAPH_NAMES: tuple[GraphName, ...] = get_args(GraphName)

#: The noise schedules.
NoiseKind = Literal["loglinear", "geometric"]
NOISES: tuple[NoiseKind, ...] = get_args(NoiseKind)

#: How one reverse step is made (``reverse_step``), and the samplers, which make many.
StepMethod = Literal["analytic", "euler", "denoise"]
STEP_METHODS: tuple[StepMethod, ...] = get_args(StepMethod)
Method = Literal[
    "analytic",
    "euler",
    "tau_leaping",
    "theta_trapezoidal",
    "hit",
    "confidence",
    "margin",
    "entropy",
    "threshold",
    "entropy_bound",
]
METHODS: tuple[Method, ...] = get_args(Method)

#: The samplers that unmask first what the network is sure of.
DecodingMethod = Literal["confidence", "margin", "entropy", "threshold", "entropy_bound"]
DECODING_METHODS: tuple[DecodingMethod, ...] = get_args(DecodingMethod)

#: How sure a network is of a position: ln p of its token, p of the likeliest token less that of the
#: second, less the entropy.
Certainty = Literal["log_prob", "margin", "entropy"]

#: How many tokens a step masks again.
RemaskSchedule = Literal["cap", "rescale"]
REMASK_SCHEDULES: tuple[RemaskSchedule, ...] = get_args(RemaskSchedule)

#: The terms of ``row_sums``: f of z = a exp(l) + b is z, z^2 or ln z.
Term = Literal["affine", "square", "log"]
TERMS: tuple[Term, ...] = get_args(Term)

#: What ``linear_denoise`` tells of a row.
Wanted = Literal[
    "token",
    "log_prob",
    "argmax",
    "max_log_prob",
    "margin",
    "entropy",
    "log_sum_exp",
    "embedding",
]
WANTED: tuple[Wanted, ...] = get_args(Wanted)

Reduction = Literal["none", "sum", "mean"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)

#: The training objectives, and the variable that MaskedCrossEntropy integrates over.
ObjectiveName = Literal["score_entropy", "masked_cross_entropy", "d3pm", "concrete_score"]
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
Variable = Literal["t", "lambda"]
VARIABLES: tuple[Variable, ...] = get_args(Variable)

#: The likelihood bounds, and how their noise levels and masks are drawn.
Mode = Literal["exact", "paper", "normalised"]
MODES: tuple[Mode, ...] = get_args(Mode)
Times = Literal["balanced", "stratified", "antithetic"]
TIMES: tuple[Times, ...] = get_args(Times)

#: How a text is cut into blocks for evaluation, and the measures of samples against steps.
Wrap = Literal["sedd", "mdlm", "separate"]
WRAPS: tuple[Wrap, ...] = get_args(Wrap)
Metric = Literal["js", "ngram", "entropy", "genppl"]

#: The data sets that papers report (``sedd_fast.data.datasets``).
DATA_SETS = ("wikitext2", "wikitext103", "ptb", "lm1b", "lambada", "text8", "openwebtext")

#: Networks, the settings of the package for their training, the schedules of its learning rate.
NetworkKind = Literal["sedd", "posterior", "ar"]
#: How a masked language model of Hugging Face is called (``sedd_fast.models.hugging_face``).
AdapterName = Literal["llada", "dream", "mdlm", "masked_lm"]
ADAPTERS: tuple[AdapterName, ...] = get_args(AdapterName)
Preset = Literal["tiny", "small", "medium"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
LearningRate = Literal["constant", "cosine"]
OptimizerName = Literal["adamw", "muon"]

#: What a run is trained on: running text, or completions given their prompts.
DataFormat = Literal["text", "prompt_completion"]
DATA_FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)

#: Where in a training text the held-out text lies.
HeldOutAt = Literal["spread", "end"]

#: Data types of matrix products: of a loaded network, and of a training as Accelerate names them.
Precision = Literal["float32", "bfloat16", "float16"]
MixedPrecision = Literal["no", "bf16", "fp16"]
MIXED_PRECISIONS: tuple[MixedPrecision, ...] = get_args(MixedPrecision)
