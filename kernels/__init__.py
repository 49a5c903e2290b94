"""Triton kernels, one operation a file, installed as ``sedd_fast.kernels``.

None yet: on a GPU the operations run on the reference backend.
"""
