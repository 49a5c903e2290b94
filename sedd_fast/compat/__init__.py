"""The original SEDD code base's module and function names over our operations.

A script written for the original (``run_train.py``, ``run_sample.py``, ``run_sample_cond.py``)
runs after changing its imports only:

    from sedd_fast.compat import data, losses, sampling, graph_lib, noise_lib, utils
    from sedd_fast.compat.model import SEDD
    from sedd_fast.compat.model.ema import ExponentialMovingAverage
    from sedd_fast.compat.load_model import load_model
    from sedd_fast.compat.catsample import sample_categorical

One file here for each module there (not its scripts), with the same names and signatures. New code
should use ``sedd_fast`` itself. What differs on purpose:

- ``Uniform.score_entropy`` writes rho as E / (E + V), E = expm1(sigma); the original's
  1 - V / (E + V) cancels in fp32 (a factor of 3 at sigma 1e-3, NaN below). Dense helpers use expm1.
- ``SEDD`` returns log scores in fp32 also where its blocks run in bf16 (on CUDA, as in the
  original); the original keeps bf16 scores. On the CPU nothing is cast unless the caller asks.
- The layers of ``model.transformer`` take one length (no ``seqlens``), and attend by torch's own
  attention; ``LayerNorm`` returns the dtype that it gets. ``model.rotary`` caches no tables, and
  ``model.fused_add_dropout_scale`` is not compiled: torch.compile does that. ``SEDD`` is built of
  the layers of ``sedd_fast``, which have the same parameters.
- Times and noise levels are float32 at least, also where torch's default dtype has 16 bits.
- Tokens are drawn by inverse CDF from float64 uniforms, not by float32 Gumbel noise, which cannot
  hit rare tokens. The same seed gives other (equally distributed) noise and samples.
- ``EulerPredictor``, ``AnalyticPredictor`` and ``Denoiser`` read log scores and build no tensor of
  probabilities. A predictor of your own still gets a ``score_fn`` that returns exponentiated
  scores, and finds the log scores under ``score_fn.log_score``.
- ``Absorbing.transition`` exists (the original returns None). ``learnable=True`` noise is refused:
  the fused loss has no gradient with respect to sigma.
- Every file is loaded with ``weights_only``, checkpoints are written whole or not at all, and
  weights must fit the model key by key (the original restores with ``strict=False``).
- ``load_model`` tells a run directory from a published checkpoint by its files; an error of one is
  not hidden by an attempt at the other. Models come back in evaluation mode.
- Data is shuffled anew in every epoch; the original's distributed sampler repeats one order.
- Wrong arguments raise ValueError or TypeError with the remedy.
"""
