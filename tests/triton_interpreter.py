"""Triton's kernels in its interpreter, which runs them in NumPy, for tests where there is no GPU.

Triton chooses between compiler and interpreter when a kernel is decorated, its own functions among them, so the environment
variable would have to be set before anything imports Triton, as torch does; here kernels are turned over afterwards. Three
of the interpreter's operations are not what a GPU does, and are put right: Triton 3.6 rounds the product in an fma, neither
3.6 nor 3.9 rounds float32 to bfloat16 to nearest even, and a condition of a whole program is an integer once it meets those
of single lanes. And 3.6 makes an int of an array in a way that NumPy 2.4 refuses.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import JITFunction, interpreter

from rsfast.ops import arithmetic, triton_accumulate, triton_base, triton_noise, triton_perturb, triton_words

_plain_patch_lang_tensor = interpreter._patch_lang_tensor
_plain_cast_impl = interpreter.InterpreterBuilder.cast_impl
_plain_create_splat = interpreter.InterpreterBuilder.create_splat


def _create_fma(self, x, y, z):
    assert z.dtype.scalar == tl.float32
    values = (torch.from_numpy(np.array(value.data)) for value in (x, y, z))
    return interpreter.TensorHandle(arithmetic.fma(*values).numpy(), tl.float32)


def _cast_impl(self, source, to):
    types = source.dtype.scalar, to.scalar
    if types == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.array(source.data)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    if types == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return _plain_cast_impl(self, source, to)


def _create_splat(self, *arguments):  # 3.6 is given a shape, 3.9 a type
    handle = _plain_create_splat(self, *arguments)
    if arguments[-1].data.dtype == bool:
        handle = interpreter.TensorHandle(handle.data.astype(bool), tl.int1)
    return handle


def _patch_lang_tensor(tensor, scope):
    _plain_patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


_patched = set()


def _call(self, *arguments, **keywords):
    """A function that a kernel calls. Triton patches its language anew for each call, which takes longer than the call.

    What a launch patches it undoes, but not what a function of another module does: once is enough.
    """
    if self.fn.__module__ not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(self.fn.__module__)
    return self.rewrite()(*arguments, **keywords)


def interpret(monkeypatch):
    """Run kernels in the interpreter until `monkeypatch` is undone."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module in (tl, tl.standard, triton_base, triton_noise, triton_perturb, triton_words, triton_accumulate):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, interpreter.InterpretedFunction(value.fn))
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", _patch_lang_tensor)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", _call)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", _create_fma)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", _cast_impl)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_splat", _create_splat)
