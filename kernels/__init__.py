"""Triton kernels, one file per operation, installed as ``sedd_fast.kernels``.

Each file has the kernels of an operation and, below them, their launchers. Shared parts:
``coefficients`` has the formulas of both graphs, ``rows`` reads a row of log scores, ``chunks``
draws from a row, ``nucleus`` applies temperature and top-p, ``tiles`` forms tiles of a linear
head's output, ``head_rows`` and ``softmax_rows`` gather and finish the rows of a head,
``softmax_blocks`` and ``denoise_statistics`` read a block of its output for a softmax, and
``settings`` has the launch settings. The backend ``triton`` calls the launchers. The code supports
Triton 3.6 to 3.9 on CUDA and ROCm, so it uses no inline assembly and no libdevice.
"""
