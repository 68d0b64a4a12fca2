"""The modules that a model runs: which they are, and eval mode for all of them while anyone samples."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn import Module

_MOST = 10_000  # objects that a search visits
_LEAVES = (type(None), int, float, complex, str, bytes, torch.Tensor, np.ndarray)  # hold no module
_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "numpy"})  # whose own code holds no module of a model
_COMMON = vars(Module()).keys()  # attributes that every module has,
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # of which these hold what runs

_lock = threading.Lock()
_in_use: dict[int, _Use] = {}  # by the id of a module, which lives as long as it is in here


class _Use:
    """A module in eval mode: the mode to put it back into, and how many runs use it."""

    def __init__(self, module: Module) -> None:
        self.module, self.training, self.runs = module, module.training, 0


@contextmanager
def evaluating(modules: Sequence[Module]) -> Iterator[None]:
    """Put the modules of a model (`modules_of`) into eval mode, without autograd, and back into the modes they were in.

    Several threads may do so at once, and with modules that they share. The first to enter puts a
    module into eval mode, and the last to leave puts it back. Tensors that are made meanwhile can be
    trained with later, even if the caller is in inference mode. A module whose mode `is_fixed` is
    left alone.
    """
    free = [module for module in modules if not is_fixed(module)]
    try:
        with _lock:
            for module in free:
                _in_use.setdefault(id(module), _Use(module)).runs += 1
            for module in free:
                if not module.training:  # already, or as part of one before it
                    continue
                if len(free) < len(modules):  # eval of what holds one that is fixed would raise
                    module.training = False
                else:
                    module.eval()
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        with _lock:
            for module in free:
                use = _in_use[id(module)]
                use.runs -= 1
                if not use.runs:
                    module.training = use.training
                    del _in_use[id(module)]


def is_fixed(module: Module) -> bool:
    """Tell whether a module's mode cannot be set.

    An exported program refuses, and frozen TorchScript has no mode: it was in eval mode when frozen.

    Examples
    --------
    >>> is_fixed(torch.nn.Dropout()), is_fixed(torch.jit.freeze(torch.jit.script(torch.nn.Dropout().eval())))
    (False, True)
    """
    if isinstance(module, torch.jit.ScriptModule):
        return not module._c.hasattr("training")
    return "train" in vars(module)  # where export puts a method that refuses


def modules_of(model: object) -> list[Module]:
    """Return the modules that a model holds, each before its parts.

    The search follows attributes, containers, closures, default arguments, partial objects, bound
    methods, and the globals that the code of a function names. It visits every part of a module,
    and else at 10,000 objects, those that are reached in the fewest steps. It reads no property and
    calls nothing, so it does not find a module that a function makes or imports when called.

    Examples
    --------
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU())
    >>> modules_of(lambda batch: network(batch)) == modules_of(network) == list(network.modules())
    True
    """
    found: list[Module] = []
    seen: dict[int, object] = {}  # the objects themselves, too, so that no id is used twice
    waiting = deque([model])
    while waiting:
        thing = waiting.popleft()
        if isinstance(thing, _LEAVES) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Module):
            found.append(thing)
            waiting.extend(thing._modules.values())
        elif len(seen) - len(found) > _MOST:
            continue
        waiting.extend(_held_by(thing))
    return found


def device_of(model: object, like: torch.Tensor) -> torch.device:
    """Return the device of the first parameter or buffer of a model's modules; that of `like` if there is none.

    Examples
    --------
    >>> device_of(torch.nn.Linear(2, 3, device="meta"), torch.zeros(2))
    device(type='meta')
    """
    tensors = (each for module in modules_of(model) for each in (*module.parameters(), *module.buffers()))
    return next(tensors, like).device


def _held_by(thing: Any) -> Iterable[object]:
    """Return what a thing holds that may be a module or lead to one."""
    if isinstance(thing, dict):
        return dict.values(thing)
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return thing
    if isinstance(thing, FunctionType):
        return _held_by_function(thing)
    if isinstance(thing, MethodType):
        return thing.__self__, thing.__func__
    if isinstance(thing, (staticmethod, classmethod)):
        return (thing.__func__,)
    if isinstance(thing, property):
        return thing.fget, thing.fset
    if isinstance(thing, partial):
        return thing.func, thing.args, thing.keywords, vars(thing)
    if isinstance(thing, type):
        return () if _of_library(thing.__module__) else (*thing.__bases__, *vars(thing).values())
    attributes = getattr(thing, "__dict__", {})
    if isinstance(thing, Module):
        hooks = (each for name in _HOOKS if (each := attributes.get(name)))
        if _of_library(type(thing).__module__):
            return hooks
        attributes = {name: each for name, each in attributes.items() if name not in _COMMON}
        return type(thing), *hooks, *attributes.values()
    if "__wrapped__" in attributes or not _of_library(type(thing).__module__):
        return type(thing), *attributes.values(), *_slots(thing)
    return ()


def _slots(thing: object) -> Iterator[object]:
    for kind in type(thing).__mro__:
        for member in () if _of_library(kind.__module__) else vars(kind).values():
            if isinstance(member, MemberDescriptorType):
                with suppress(AttributeError):  # not assigned yet
                    yield member.__get__(thing)


def _held_by_function(function: FunctionType) -> Iterator[object]:
    yield from (vars(function), function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    space = function.__globals__
    if not _of_library(space.get("__name__")):
        names, spaces = set(_names(function.__code__)), [space]
        for space in spaces:  # of its module, and of the modules that it names there: those in `package.part.network`
            for value in map(space.get, names & space.keys()):
                if not isinstance(value, ModuleType):
                    yield value
                elif not _of_library(value.__name__) and all(vars(value) is not other for other in spaces):
                    spaces.append(vars(value))


def _names(code: CodeType) -> Iterator[str]:
    """Return the names of globals and attributes in a function and those defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_library(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _LIBRARIES
