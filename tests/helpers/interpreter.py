"""Triton's interpreter at half its time: its own functions, with what they compute again kept.

No check is left out. What a version of Triton does not have stays as it is.
"""

import functools
import math
from typing import Any

import numpy as np


def make_faster() -> None:
    """Replace functions of Triton's interpreter in this process, where kernels are not compiled."""
    from triton import language
    from triton.runtime import interpreter

    patch_the_language_once(interpreter, language)
    keep_dtypes(interpreter)
    keep_shapes(language)
    of = getattr(language.semantic, "TritonSemantic", None)
    if hasattr(of, "binary_op_sanitize_overflow_impl"):
        of.binary_op_sanitize_overflow_impl = check_overflow


def patch_the_language_once(interpreter: Any, language: Any) -> None:
    """Patch the language once per launch: the interpreter does it at every call of a function."""
    patch, patched = interpreter._patch_lang, set()

    @functools.cache
    def used(fn: Any) -> frozenset[int]:
        found = fn.__globals__.values()
        return frozenset(id(m) for m in (language, language.core) if any(v is m for v in found))

    def patch_once(fn: Any) -> object:
        modules = used(fn)
        if modules in patched:
            return interpreter._LangPatchScope()
        scope = patch(fn)
        patched.add(modules)
        restore = scope.restore

        def restore_and_forget() -> None:
            patched.clear()
            restore()

        scope.restore = restore_and_forget
        return scope

    interpreter._patch_lang = patch_once


def keep_dtypes(interpreter: Any) -> None:
    """Make the table of NumPy's dtypes once, and not whenever one is asked for."""
    found = functools.cache(interpreter._get_np_dtype)

    def of(kind: Any) -> np.dtype[Any]:
        kind = kind.scalar
        return np.dtype(np.uint64) if kind.is_ptr() else found(kind)

    interpreter._get_np_dtype = of


def keep_shapes(language: Any) -> None:
    """Make every shape once: each operation makes tensors, and types of blocks."""
    blocks: dict[Any, dict[str, Any]] = {}
    make_block = language.block_type.__init__

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, tuple([getattr(size, "value", size) for size in shape])
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        vars(self).update(blocks[key], element_ty=element_ty)

    @functools.cache
    def described(shape: tuple[int, ...]) -> tuple[Any, Any]:
        parts = [language.constexpr(size) for size in shape]
        return language.tuple(parts), language.constexpr(math.prod(shape))

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = described(tuple(list(type.shape)) if type.is_block() else ())

    language.block_type.__init__, language.tensor.__init__ = block, tensor


def check_overflow(_: Any, lhs: Any, rhs: Any, binary_op: Any) -> None:
    """Fail where a sum, difference or product of integers is beyond their dtype."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64:
        return
    op = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
    exact = op(lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
    inside = exact.min() >= kind.get_int_min_value() and exact.max() <= kind.get_int_max_value()
    assert inside, f"int{kind.int_bitwidth} overflow detected for operation {binary_op.__name__}"
