"""The base classifier as it is run: eval mode, autocast, compiled or as a CUDA graph, and the check of what it returns."""

from __future__ import annotations

import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from .._hints import add_note
from ..ops import as_dtype
from .modes import evaluating, is_fixed, modules_of

Model = Callable[[torch.Tensor], torch.Tensor]
"""Anything that maps a batch [B, *shape] to logits [B, K], or to an object whose attribute ``logits`` they are."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "HIP error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)

_lock = threading.Lock()  # of settings that threads share
_found: list[bool] = []  # what the setting was as each run in progress of a compiled model began


class Forward:
    """The base classifier as it is run: from a batch to its logits, within `running`.

    Parameters
    ----------
    model : callable
        From a batch [B, *shape] to logits [B, num_classes], or to an object whose attribute `logits` they are, as models of
        Hugging Face return.
    num_classes : int
        K, the number of logits.
    device : torch.device
        Where the batches are.
    autocast : torch.dtype or str, optional
        bfloat16 or float16, or its name: the model runs under `torch.autocast`. None takes what the autocast context has
        that this is called in, if any. The attribute `autocast` is what was taken.
    compile : bool
        Run the model through `torch.compile`; what stops the compiler is raised. The first batch size gets its own graph,
        the second one for all sizes. Graphs stay with the model's code, so another Forward of the same model compiles
        nothing. Hooks that come or go are noticed.
    cuda_graph : bool
        Replay the model as a CUDA graph. The second call in a row with the same batch (address, shape, strides and dtype)
        captures the model, and further ones replay that until another batch is captured; all other calls run eagerly. The
        next call overwrites the logits. What the model does in Python, hooks too, a replay leaves out. With `compile` it is
        the compiled model that is captured.

    Attributes
    ----------
    modules : list of nn.Module
        Those that the model holds.
    mode_fixed : bool
        Whether part of the model has a mode that cannot be set, as that of an exported program or of frozen TorchScript.
    full_precision : bool
        Refuse logits below float32; False at first.
    about : str
        What an error of the model has as a note, besides the shape of its batch; nothing at first.

    Raises
    ------
    TypeError, ValueError
        If the device has no such autocast, or no CUDA graphs.

    References
    ----------
    PyTorch's documentation: "CUDA semantics", on graphs; "PyTorch 2.0 NNModule support", on hooks.

    Examples
    --------
    >>> forward = Forward(torch.nn.Linear(8, 3), 3, torch.device("cpu"), autocast=torch.bfloat16)
    >>> with forward.running():
    ...     logits = forward(torch.zeros(5, 8))
    >>> logits.shape, logits.dtype
    (torch.Size([5, 3]), torch.bfloat16)
    """

    def __init__(
        self,
        model: Model,
        num_classes: int,
        device: torch.device,
        *,
        autocast: torch.dtype | str | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        if cuda_graph and device.type != "cuda":
            raise ValueError(
                f"cuda_graph must be False where inputs is on '{device}', got True; move inputs to a CUDA device"
            )
        if autocast is None and torch.is_autocast_enabled(device.type):
            autocast = torch.get_autocast_dtype(device.type)
        self.num_classes, self.device, self.autocast = num_classes, device, _check_autocast(autocast, device)
        self.compile, self.cuda_graph = compile, cuda_graph
        self.full_precision, self.about = False, ""
        self.model, self.modules = model, modules_of(model)
        self.mode_fixed = any(map(is_fixed, self.modules))
        self._run = torch.compile(model, backend=_inductor) if compile else model
        self._last: tuple[object, ...] | None = None
        self._captured: tuple[tuple[object, ...], torch.cuda.CUDAGraph, torch.Tensor] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Put what the model holds into eval mode and switch autograd off meanwhile, as `modes.evaluating` does."""
        with evaluating(self.modules), _guards_on_hooks() if self.compile else nullcontext():
            yield

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, num_classes] of a batch [B, *shape]; raise TypeError or ValueError if they are not that."""
        if not self.cuda_graph:
            return self._logits(self._run, batch)
        key = (batch.data_ptr(), batch.shape, batch.stride(), batch.dtype)
        again, self._last = key == self._last, key
        if self._captured is None or self._captured[0] != key:
            if not again:
                return self._logits(self._run, batch)
            self._captured = None  # the memory of an older graph goes first
            self._captured = key, *self._capture(batch)
        _, graph, logits = self._captured
        graph.replay()
        return logits

    def eagerly(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch as the model itself computes them: nothing is compiled, captured or replayed."""
        return self._logits(self.model, batch)

    def release(self) -> None:
        """Let go of the CUDA graph, if there is one, and of its memory; the next calls begin anew."""
        self._captured, self._last = None, None

    def _logits(self, run: Model, batch: torch.Tensor) -> torch.Tensor:
        # A graph must not read weights cast outside it, whose memory goes when autocast's cache is cleared.
        with torch.autocast(
            self.device.type, self.autocast, enabled=self.autocast is not None, cache_enabled=not self.cuda_graph
        ):
            try:
                logits = check_logits(run(batch), len(batch), self.num_classes)
            except Exception as error:
                own = parameter_dtype(self.modules)
                if isinstance(error, RuntimeError) and own not in (None, batch.dtype) and not is_out_of_memory(error):
                    raise ValueError(
                        f"dtype must be {own}, that of the model's parameters, got {batch.dtype}, on which the model fails "
                        f"({error}); pass dtype={own}, or a model that converts its input"
                    ) from error
                if not is_out_of_memory(error):
                    what = f"{list(batch.shape)} of {batch.dtype} on '{batch.device}'"
                    add_note(error, f"the model was given a batch {what}: {len(batch)} rows, of at most batch_size")
                    if self.about:
                        add_note(error, self.about)
                raise
        if self.full_precision and logits.dtype.itemsize < 4:
            raise ValueError(f"model must return float32 logits with lipschitz, as rounded scores jump, got {logits.dtype}")
        return logits

    def _capture(self, batch: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Return the graph of the model on this batch, and where it will write the logits: capturing computes nothing."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries set themselves up, which cannot be captured
                    self._logits(self._run, batch)
            torch.cuda.current_stream().wait_stream(side)
            # In the default mode what another thread does, as one that pins inputs, would end the capture.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                logits = self._logits(self._run, batch)
        return graph, logits


def check_logits(output: object, batch: int, num_classes: int, name: str = "model") -> torch.Tensor:
    """Return the logits [batch, num_classes] that a model returned, as a tensor or as an object's attribute `logits`.

    Errors call the model `name`.

    Raises
    ------
    TypeError, ValueError
        If there are none, they have another shape, or they are not floating-point numbers.

    Examples
    --------
    >>> check_logits(torch.zeros(5, 3), 5, 3).shape
    torch.Size([5, 3])
    """
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"{name} must return the logits, a tensor [B, K], or an object whose attribute logits they are, got a "
            f"{type(output).__name__}; wrap it in a function that picks them out"
        )
    if logits.layout != torch.strided or logits.is_nested:
        what = "a nested tensor" if logits.is_nested else f"one of {logits.layout}"
        raise TypeError(f"{name} must return a dense tensor [B, K], got {what}; call to_dense()")
    if logits.ndim != 2 or logits.shape[0] != batch:
        raise ValueError(f"{name} must return shape [{batch}, K] for a batch of {batch}, got {list(logits.shape)}")
    if logits.shape[1] != num_classes:
        raise ValueError(f"num_classes must be {logits.shape[1]}, the logits that {name} returns a row, got {num_classes}")
    if not logits.is_floating_point():
        raise TypeError(f"{name} must return floating-point logits, got {logits.dtype}")
    return logits


def parameter_dtype(modules: Sequence[torch.nn.Module]) -> torch.dtype | None:
    """Return the dtype of the first floating-point parameter, which mostly meets the batch; None without one."""
    parameters = (each for module in modules for each in module.parameters(recurse=False))
    return next((each.dtype for each in parameters if each.is_floating_point()), None)


def reduced_precision(modules: Sequence[torch.nn.Module], device: torch.device) -> tuple[str, ...]:
    """Return what makes a model's modules compute in less than float32 precision there.

    Their parameters and buffers of fewer than 32 bits, quantized modules, and the settings under which matrix products and
    convolutions of float32 are rounded to TF32 or bfloat16. The batch's dtype and autocast are not among them, nor is what a
    model casts by itself.

    References
    ----------
    PyTorch's documentation: "CUDA semantics", on TF32, and `torch.set_float32_matmul_precision`; oneDNN's, on the
    floating-point math mode.

    Examples
    --------
    >>> reduced_precision([torch.nn.Linear(2, 2).bfloat16()], torch.device("cpu"))
    ('bfloat16 parameters or buffers',)
    """
    tensors = (each for module in modules for each in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    dtypes = {held.dtype for tensor in tensors for held in _held(tensor)}
    found = {
        f"{str(dtype).removeprefix('torch.')} parameters or buffers"
        for dtype in dtypes - {torch.bool}
        if dtype.itemsize < (8 if dtype.is_complex else 4) or dtype == torch.qint32
    }
    kinds = {type(module).__module__ for module in modules}
    found |= {f"modules of {kind}" for kind in kinds if kind.startswith("torch.") and ".quantized" in kind}
    return *sorted(found), *_lowered_settings(device.type)


def _held(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor, or the tensors inside one of a subclass, as a quantized tensor claims to be float32."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _held(getattr(tensor, name))
    else:
        yield tensor


def _lowered_settings(device: str) -> Iterator[str]:
    """Yield the settings, with their values, that let operations on float32 round what they multiply."""
    names = {"cuda": ("cuda.matmul", "cudnn.conv", "cudnn.rnn"), "cpu": ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")}
    variables = {"cuda": ("NVIDIA_TF32_OVERRIDE",), "cpu": ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")}
    for name in names.get(device, ()):
        value = operator.attrgetter(f"{name}.fp32_precision")(torch.backends)
        if value not in ("ieee", "none"):
            yield f"torch.backends.{name}.fp32_precision = {value}"
    for name in variables.get(device, ()):
        if (value := os.environ.get(name, "")).upper() not in ("", "0", "STRICT"):
            yield f"the environment's {name} = {value}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory, of the host or of a GPU, ran out.

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    (True, False)
    """
    if isinstance(error, RuntimeError):  # of which torch.OutOfMemoryError is one
        return isinstance(error, torch.cuda.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError)


def _check_autocast(value: torch.dtype | str | None, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, which torch can do on that device; or None."""
    if value is None:
        return None
    dtype = as_dtype("autocast", value, (torch.bfloat16, torch.float16), otherwise="None or ")
    with _lock, warnings.catch_warnings():  # which is the whole process's
        warnings.simplefilter("ignore")  # where torch cannot, it warns and goes on without
        with torch.autocast(device.type, dtype):
            if not torch.is_autocast_enabled(device.type):
                raise ValueError(
                    f"autocast must be None on '{device}', where torch {torch.__version__} cannot do it, got {dtype}"
                )
    return dtype


def _inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    """Compile as torch.compile does by default, which shares graphs by backend: the default one's do not mind hooks."""
    from torch._functorch import config  # loads the compiler
    from torch._inductor.compile_fx import compile_fx

    # Up to torch 2.11 its cache, on disk too, takes a graph made under another dtype of autocast for the same.
    with config.patch(enable_autograd_cache=not any(map(torch.is_autocast_enabled, ("cpu", "cuda")))):
        return compile_fx(graph, inputs)


@contextmanager
def _guards_on_hooks() -> Iterator[None]:
    """Have the model compiled anew where hooks are new: by default a graph from before they came runs on without them.

    The setting is one of the process up to torch 2.11, and of a thread since then. Of several threads
    each puts back, when it leaves, what the last to enter found. So it stays until all have left.
    """
    from torch._dynamo import config  # loads the compiler

    with _lock:
        _found.append(config.skip_nnmodule_hook_guards)
        config.skip_nnmodule_hook_guards = False
    try:
        yield
    finally:
        with _lock:
            config.skip_nnmodule_hook_guards = _found.pop()
