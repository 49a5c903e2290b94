"""Triton kernels, one operation a file, installed as ``sedd_fast.kernels``.

Each file holds its kernels and, below them, their launchers; ``coefficients`` has the formulas that
they share, ``rows`` how a row of log scores is read, ``chunks`` the draw from it, ``nucleus``
temperature and top-p, ``settings`` how kernels are launched. ``sedd_fast.backends.triton`` calls
the launchers. Everything is written for Triton 3.6 to 3.9, for CUDA and ROCm alike: no inline
assembly, no libdevice.
"""
