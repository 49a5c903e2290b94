"""Triton's interpreter at a third of its time: what its functions compute again is kept.

No check is left out. What a version of Triton does not have stays as it is.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np


def make_faster() -> None:
    """Replace functions of Triton's interpreter in this process, where kernels are not compiled."""
    from triton import language
    from triton.runtime import interpreter

    patch_the_language_once(interpreter, language)
    keep_dtypes(interpreter)
    keep_shapes(language)
    find_builtins_once(interpreter, language)
    compare_and_unwrap_at_once(language)
    of = getattr(language.semantic, "TritonSemantic", None)
    if hasattr(of, "binary_op_sanitize_overflow_impl"):
        of.binary_op_sanitize_overflow_impl = check_overflow
    if hasattr(of, "binary_op_type_checking_impl"):
        convert_what_differs(of, language)


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


def find_builtins_once(interpreter: Any, language: Any) -> None:
    """Look for the functions to patch once, and call what they wrap without the wrapper's check."""
    if not (hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_LangPatchScope")):
        return
    core, given = language.core, {"_semantic": interpreter.interpreter_semantic}
    checks = core.builtin(lambda: None).__code__  # whether there is a _semantic: there is

    def patched(member: Any) -> Callable[..., Any]:
        if getattr(member, "__code__", None) is checks:
            member = member.__wrapped__
        return lambda *args, **rest: member(*args, **{**rest, **given})

    @functools.cache
    def builtins_of(package: Any) -> list[tuple[str, Callable[..., Any]]]:
        members = inspect.getmembers(package)
        return [(name, patched(member)) for name, member in members if core.is_builtin(member)]

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name, function in builtins_of(package):
            scope.set_attr(package, name, function)

    interpreter._patch_builtin = patch


def compare_and_unwrap_at_once(language: Any) -> None:
    """Return at once for the same dtype, and for values that hold no other."""
    core = language.core
    unwrap, equal, constant = core._unwrap_if_constexpr, core.dtype.__eq__, core.constexpr
    plain = (core.tensor, core.dtype, int, float, bool, str, type(None))

    def unwrapped(value: Any) -> Any:
        kind = type(value)
        return value.value if kind is constant else value if kind in plain else unwrap(value)

    core._unwrap_if_constexpr = unwrapped
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)


def convert_what_differs(semantic: Any, language: Any) -> None:
    """Return operands of one dtype and shape as they are; find dtypes and convert numbers once.

    An operand is never changed in place, so those that are numbers may be shared.
    """
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value
    promote, found = semantic.computation_type_impl, {}
    tensor, numbers = language.tensor, {}

    def sizes(kind: Any) -> Any:  # keep_shapes has put them there
        return kind.sizes if kind.is_block() else None

    def operands(self: Any, left: Any, right: Any, *args: Any, **options: Any) -> Any:
        if type(left) is tensor and type(right) is tensor:
            name, divides = left.dtype.name, bool(options) or len(args) > 3
            alike = name == right.dtype.name and not left.dtype.is_ptr()
            alike = alike and (not divides or name in ("fp32", "fp64"))
            if alike and sizes(left.type) == sizes(right.type):
                return left, right
        elif not options and type(left) is tensor and type(right) in (int, float):
            key = left.dtype.name, sizes(left.type), type(right), repr(right), args, 1
            if key in numbers:
                return left, numbers[key]
            pair = check(self, left, right, *args)
            if pair[0] is left:
                numbers[key] = pair[1]
            return pair
        elif not options and type(right) is tensor and type(left) in (int, float):
            key = right.dtype.name, sizes(right.type), type(left), repr(left), args, 0
            if key in numbers:
                return numbers[key], right
            pair = check(self, left, right, *args)
            if pair[1] is right:
                numbers[key] = pair[0]
            return pair
        return check(self, left, right, *args, **options)

    def of_one_shape(self: Any, left: Any, right: Any) -> Any:
        same = sizes(left.type) == sizes(right.type)
        return (left, right) if same else broadcast(self, left, right)

    def promoted(self: Any, *operands: Any) -> Any:
        key = tuple([getattr(operand, "name", operand) for operand in operands])
        if key not in found:
            found[key] = promote(self, *operands)
        return found[key]

    semantic.binary_op_type_checking_impl = operands
    semantic.broadcast_impl_value = of_one_shape
    semantic.computation_type_impl = promoted


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
            blocks[key] = dict(vars(self), sizes=key[1])
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
