"""A GPU that is not there: tensors on "cuda:0" whose copies to the host arrive late, and the clocks of host and device.

What would make the host wait raises AssertionError. A copy holds other numbers until its event, and memory must not change
before it was copied to the device.
"""

import copy
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from rsfast import ops

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
_COPIES = (aten.copy_.default, aten._to_copy.default)


class DeviceTensor(torch.Tensor):
    """A tensor that says that it is on the GPU; `values` holds what is there. To torch itself it has no memory."""

    device, is_cuda = property(lambda self: CUDA), True

    @staticmethod
    def __new__(cls, values):
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, device="meta", **layout)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the device")


def _values(each):
    return each.values if isinstance(each, DeviceTensor) else each


class FakeDevice(TorchDispatchMode):
    """Within it torch has a device "cuda:0". Its work is done at once, but the host may see it only when its clock says so.

    Attributes
    ----------
    now, busy, idle : float
        Seconds on the host's clock, when the device will have done its work, and how long it had none between two batches.
    events : list of str
        "batch" and "wait", in their order.
    copies : int
        To the device.
    """

    def __init__(self, monkeypatch):
        super().__init__()
        self.now = self.busy = self.idle = 0.0
        self.events, self.copies, self._strict = [], 0, True
        self._sent, self._arriving, self._arrived, self._pinned = [], [], 0, {}
        device = self

        class Event:
            def __init__(self, enable_timing=False):
                self.timed = enable_timing

            def record(self, stream):
                assert stream == ("stream of", CUDA)
                self.when, self.sent = device.busy, len(device._arriving)

            def query(self):
                if device.now >= self.when:
                    device._deliver(self.sent)
                return device.now >= self.when

            def synchronize(self):
                device.events.append("wait")
                device.now = max(device.now, self.when)
                device._deliver(self.sent)

            def elapsed_time(self, end):
                assert self.timed
                return 1000 * (end.when - self.when)

        fakes = {"Event": Event, "current_stream": lambda device: ("stream of", device), "_lazy_init": lambda: None}
        for name, each in fakes.items():
            monkeypatch.setattr(torch.cuda, name, each)

    @contextmanager
    def may_wait(self):
        """Let the host wait, as where a sampler is made."""
        self._strict = False
        try:
            yield
        finally:
            self._strict = True

    def run(self, seconds):
        """Give the device so much work."""
        if self.busy:
            self.idle += max(0.0, self.now - self.busy)
        self.busy = max(self.busy, self.now) + seconds
        self.events.append("batch")

    def _deliver(self, count):
        for place in range(self._arrived, count):
            target, values = self._arriving[place]
            target.copy_(values)
            self._arriving[place] = None
        self._arrived = max(self._arrived, count)
        for source, values in self._sent:
            assert torch.equal(source, values), "memory was written to while it was copied to the device"
        self._sent.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", False)
        if func is aten.is_pinned.default:
            return self._is_pinned(args[0])
        if func is aten._pin_memory.default:
            func, args, pinned = aten.clone.default, args[:1], True
        tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
        there = [isinstance(each, DeviceTensor) for each in tensors]
        if func in _COPIES:
            return self._copy(func, args, kwargs)
        named = kwargs.get("device")
        if named is not None and torch.device(named).type == "cuda":
            kwargs["device"], there = "cpu", [*there, True]
        if any(there):
            if func is aten._local_scalar_dense.default:
                self._refuse("a value of the device was read")
            elif not all(there) and any(each.ndim and not there[place] for place, each in enumerate(tensors)):
                self._refuse(f"{func} copies an argument to the device")
        found = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if pinned:
            self._pinned[found.untyped_storage().data_ptr()] = found  # kept, so that no other tensor gets its memory
        if not any(there):
            return found
        return tree_map(lambda each: DeviceTensor(each) if isinstance(each, torch.Tensor) else each, found)

    def _copy(self, func, args, kwargs):
        """Copy between host and device: from pinned memory, or into it, and without waiting."""
        named, queued = kwargs.pop("device", None), kwargs.pop("non_blocking", False)
        if func is aten.copy_.default:
            target, source, *rest = args
            queued, to_device = queued or rest == [True], isinstance(target, DeviceTensor)
        else:
            target, source = None, args[0]
            to_device = isinstance(source, DeviceTensor) if named is None else torch.device(named).type == "cuda"
        from_device = isinstance(source, DeviceTensor)
        if to_device and not from_device:
            self.copies += 1
            if not queued or not self._is_pinned(source):
                self._refuse("a copy to the device from memory that is not pinned, or that waits")
            self._sent.append((source, source.clone()))
        elif from_device and not to_device:
            if queued and target is not None and self._is_pinned(target):
                self._arriving.append((target, source.values.clone()))
                return target.fill_(-7)
            self._refuse("a copy to the host that waits")
        if target is not None:
            _values(target).copy_(_values(source))
            return target
        found = func(_values(source), **kwargs)
        return DeviceTensor(found) if to_device else found

    def _is_pinned(self, tensor):
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _refuse(self, what):
        if self._strict:
            raise AssertionError(what)


def perturber(inputs, noise, *, input_ids, **options):
    """`ops.perturber` on the fake device."""
    run = ops.perturber(inputs.values, noise, input_ids=input_ids.values, **options)
    return lambda out, places, stream: run(out.values, places.values, stream)


def accumulator(tally, backend):
    """`ops.accumulator` on the fake device."""
    there = copy.copy(tally)
    there.__dict__ |= {name: _values(each) for name, each in vars(tally).items()}
    add = ops.accumulator(there, backend=backend)
    return lambda logits, places: add(logits.values, places.values)
