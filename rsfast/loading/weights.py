"""Weights of a module from a file: found in it, fitted to the module's names, and only ever loaded whole."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple

import safetensors.torch
import torch

from .._digests import state_dict_sha256
from .._files import hint_of_text, open_file
from .._hints import listed

State = Mapping[str, Any]
"""Tensors by their names in a module's state_dict."""

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What DataParallel, torch.compile and the like put into names, in front or further in.

_ARCHIVES = {  # by a file in them
    "constants.pkl": "a TorchScript archive",
    "archive_format": "an archive of torch.export",
    "serialized_exported_program.json": "an archive of torch.export",
}
_WHOLE = {"a TorchScript archive": "jit:FILE", "an archive of torch.export": "export:FILE"}


class Fit(NamedTuple):
    """How the names of tensors in a file fit those of a module."""

    entry: str
    names: dict[str, str]

    @property
    def notes(self) -> str:
        """Return what is not as in the file, for a message; "" if all is."""
        changed = [f"{theirs} as {ours}" for theirs, ours in self.names.items() if theirs != ours]
        notes = [f"took its entry {self.entry}"] if self.entry else []
        if changed:
            notes.append(f"read {changed[0]}" + (f", and {len(changed) - 1} more names so" if len(changed) > 1 else ""))
        return ", ".join(notes)


def load_weights(module: torch.nn.Module, spec: str, path: str) -> None:
    """Load the one state_dict in a file that fits a module, strictly, and warn of what was not as in the file.

    Parameters
    ----------
    module : nn.Module
        Changed in place; after an error it may hold some of the weights.
    spec : str
        The module's name in errors.
    path : str
        A .safetensors file, or what `torch.save` wrote: a state_dict, or a checkpoint that holds one under any name.
        Its names may differ from the module's by what wrappers put into them, or by a prefix that all share.

    Raises
    ------
    ValueError
        Beginning with "weights" and the file, if it cannot be read or holds more than tensors, if no entry fits, or if
        several that differ do.
    """
    what = f"weights {path}"
    if notes := fit_weights(module, spec, what, read_weights(what, path)).notes:
        warnings.warn(f"{what}: {notes}", UserWarning, stacklevel=2)


def fit_weights(module: torch.nn.Module, spec: str, what: str, checkpoint: Any) -> Fit:
    """Load the one state_dict that fits a module out of what a file holds, as `load_weights`; `what` names the file."""
    own = module.state_dict()
    entries = list(_entries(checkpoint))
    fitting: dict[str, list[tuple[str, State, State]]] = {}  # by digest, as the same weights may be there twice
    for name, state in entries:
        for renamed in _renamings(state, own):
            if _error_of_loading(module, renamed) is None:
                fitting.setdefault(state_dict_sha256(module) or "", []).append((name, state, renamed))
                break
    if not fitting:
        why = _misfit(module, own, entries) if entries else f"it holds a {type(checkpoint).__name__}, not tensors by name"
        why += f"; the file holds {listed(checkpoint)}" if isinstance(checkpoint, Mapping) else ""
        raise ValueError(f"{what} does not fit model {spec}: {why}")
    if len(fitting) > 1:
        found = ", ".join(name or "the file itself" for same in fitting.values() for name, *_ in same)
        raise ValueError(
            f"{what} must hold one state_dict that fits model {spec}, got several that differ: {found}; "
            "save the one to certify by itself"
        )
    (same,) = fitting.values()
    name, state, renamed = same[0]
    _error_of_loading(module, renamed)  # once more, as others may have been tried since
    return Fit(name, dict(zip(state, renamed, strict=True)))


def read_weights(what: str, path: str) -> Any:
    """Return what a file holds; only tensors, numbers and plain containers are unpickled. `what` names it in errors."""
    try:
        file = open_file(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error
    with file:
        head = file.read(9)
        if not head:
            raise ValueError(f"{what} must hold a state_dict, got an empty file")
        try:
            archive = _archive(file)
            if archive is None and (Path(path).suffix == ".safetensors" or head[8:] == b"{"):
                return safetensors.torch.load_file(path)
            if archive is None:
                file.seek(0)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of formats that may not load: they load, or raise
                    return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{what} {_reason(error)}{hint_of_text(file)}") from error
    raise ValueError(f"{what} is {archive}, a whole model; name it as the model: {_WHOLE[archive]}")


def _archive(file: BinaryIO) -> str | None:
    """Return which archive of a whole model a file is, if it is one."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as members:
        names = {name.rpartition("/")[2] for name in members.namelist()}
    return next((kind for name, kind in _ARCHIVES.items() if name in names), None)


def _reason(error: Exception) -> str:
    """Return why a file was not read, without PyTorch's own advice, which is to unpickle it all the same."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return (
            f"holds a {foreign[1]}, and nothing but tensors is unpickled; where you trust the file, read it with "
            "torch.load(FILE, weights_only=False), and save its state_dict by itself"
        )
    what = "" if isinstance(error, UnpicklingError) else f" ({type(error).__name__}: {error})"
    return (
        f"is damaged or holds more than tensors{what[:200]}; it must be a .safetensors file, or a state_dict that "
        "torch.save wrote"
    )


def _entries(checkpoint: Any) -> Iterator[tuple[str, State]]:
    """Yield the mappings of names in a checkpoint, itself first, with the names that lead to each."""
    waiting, seen = [("", checkpoint)], set()
    for path, entry in waiting:
        if isinstance(entry, Mapping) and id(entry) not in seen and all(isinstance(name, str) for name in entry):
            seen.add(id(entry))
            yield path, entry
            waiting += [(f"{path}.{name}" if path else name, value) for name, value in entry.items()]


def _renamings(state: State, own: State) -> Iterator[State]:
    """Yield a state with its own names first, then with those that it may have in the module, in the same order."""
    yield state
    theirs = [unwrapped(name) for name in state]
    ours = {unwrapped(name): name for name in own}
    moves = [(prefix, "") for prefix in _prefixes(theirs)] + [("", prefix) for prefix in _prefixes(ours)]
    for old, new in moves:
        names = [new + name.removeprefix(old) for name in theirs]
        renamed = dict(zip([ours.get(name, name) for name in names], state.values(), strict=True))
        if len(renamed) == len(state):
            yield renamed


def unwrapped(name: str) -> str:
    """Return a name without what DataParallel, torch.compile and the like put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes that all names share: "", "a.", "a.b." of a.b.weight and a.b.bias."""
    names = list(names)
    first, last = min(names, default=""), max(names, default="")  # what these two share, all do
    ends = [0, *(place + 1 for place, letter in enumerate(first) if letter == ".")]
    return [first[:end] for end in ends if last.startswith(first[:end])]


def _error_of_loading(module: torch.nn.Module, state: State) -> Exception | None:
    try:
        module.load_state_dict(state)
    except Exception as error:  # of PyTorch, or of a module's own way to load
        return error
    return None


def _misfit(module: torch.nn.Module, own: State, entries: Sequence[tuple[str, State]]) -> str:
    """Return how the entry that is nearest, under the names that are nearest, differs from a module's state_dict."""
    name, state, nearest = min(
        ((name, state, renamed) for name, state in entries for renamed in _renamings(state, own)),
        key=lambda each: (-len(each[2].keys() & own.keys()), -_tensors(each[1]), len(each[2].keys() ^ own.keys())),
    )
    in_file = dict(zip(nearest, state, strict=True))
    unexpected = [in_file[each] for each in nearest if each not in own]
    reasons = [
        _some("missing", [each for each in own if each not in nearest]),
        _some("unexpected", unexpected),
        _some("of another shape", [found for each in own if (found := _shapes(each, own, nearest))]),
    ]
    why = ", ".join(filter(None, reasons)) or str(_error_of_loading(module, nearest))
    if unexpected and (prefix := _prefix_of_some(state, own)) is not None:
        chosen = f"name.removeprefix({prefix!r}): value for name, value in STATE.items() if name.startswith({prefix!r})"
        why += f"; the names that begin with {prefix} are those of the model: save these by themselves, {{{chosen}}}"
    return f"of its entry {name}, {why}" if name else why


def _tensors(state: State) -> int:
    return sum(isinstance(value, torch.Tensor) for value in state.values())


def _prefix_of_some(state: State, own: State) -> str | None:
    """Return a prefix that some names in a file have, and which are a module's without it; None if there is none."""
    ours = [*map(unwrapped, own)]
    for last in state:
        prefix = last.removesuffix(ours[0]) if ours else last
        if prefix not in ("", last) and sorted(ours) == sorted(
            unwrapped(name.removeprefix(prefix)) for name in state if name.startswith(prefix)
        ):
            return prefix
    return None


def _some(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what}, such as {names[0]}" if len(names) > 1 else f"{names[0]} is {what}" if names else ""


def _shapes(name: str, own: State, state: State) -> str:
    """Return a tensor's name and both its shapes, if they differ."""
    ours, theirs = (
        list(each.shape) if isinstance(each, torch.Tensor) and not torch.nn.parameter.is_lazy(each) else None
        for each in (own[name], state.get(name))
    )
    return "" if None in (ours, theirs) or ours == theirs else f"{name} ({theirs}, where the model has {ours})"
