"""Libraries that only some commands, models and data need: imported when used; an error says how to get one."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

_kept: list[Any] = []  # torch.library.Library, with which its operators would go


def import_extra(module: str, extra: str, what: str) -> Any:
    """Return a module of another library.

    Parameters
    ----------
    module : str
        Its name, such as "timm".
    extra : str
        The extra of rsfast that installs the library.
    what : str
        What needs it, with which the error begins.

    Raises
    ------
    ImportError
        If the library is not installed.

    Examples
    --------
    >>> import_extra("no_such_library", "vision", "model timm:resnet18")
    Traceback (most recent call last):
    ImportError: model timm:resnet18 needs no_such_library: pip install 'rsfast[vision]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:  # one that the library needs itself
            raise
        raise ImportError(f"{what} needs {library}: pip install 'rsfast[{extra}]'") from error


def import_torchvision(what: str) -> Any:
    """Return torchvision, whose compiled operators are declared without a kernel where they do not load beside this torch.

    That is so where its wheel was built for another torch, as for CUDA beside one for the CPU. Models that classify call
    none of these operators.
    """
    try:
        return import_extra("torchvision", "vision", what)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import has left
    operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _kept.append(operators)
    for name in ("nms", "qnms"):  # for which torchvision registers kernels without asking whether they are there
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    torchvision = import_extra("torchvision", "vision", what)
    warnings.warn(
        f"torchvision {torchvision.__version__} was built for another torch than {torch.__version__}: models that call its "
        "compiled operators (nms, roi_align and the like; those that classify call none) will fail",
        UserWarning,
        stacklevel=2,
    )
    return torchvision
