"""rsfast.engine.forward: what a base classifier may be and return, and that each way to run it runs the same classifier."""

import weakref
from collections import OrderedDict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import rsfast
from rsfast.engine.forward import Forward, is_out_of_memory
from rsfast.engine.modes import evaluating, modules_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BATCH = torch.rand((16, 3, 2, 2), generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Dropout tells train from eval mode."""

    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes))

    def forward(self, batch):
        return self.layers(batch)


def sequential():
    """Its forward is torch's own, which torch.compile treats in another way."""
    return Network().layers


def run(model, batch=BATCH, *, device=CPU, num_classes=4, **options):
    forward = Forward(model, num_classes, device, **options)
    with forward.running():
        return forward(batch)


# What a model may return


@dataclass
class Output:
    logits: torch.Tensor


class ModelOutput(OrderedDict):
    """As Hugging Face's: a dict whose entries are attributes, too."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__.update(entries)


@pytest.mark.parametrize("output", [Output, ModelOutput])
@pytest.mark.parametrize("compile", [False, True])
def test_an_object_with_logits(output, compile):
    model = Network().eval()
    found = run(lambda batch: output(logits=model(batch)), compile=compile)
    torch.testing.assert_close(found, model(BATCH), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "message", "output"),
    [
        (
            TypeError,
            r"^model must return the logits, a tensor \[B, K\], or an object whose attribute logits they are, got a tuple",
            lambda y: (y,),
        ),
        (TypeError, r"^model must return the logits, .*, got a dict; ", lambda y: {"logits": y}),
        (TypeError, r"^model must return the logits, .*, got a list; ", lambda y: [y]),
        (TypeError, r"^model must return the logits, .*, got a NoneType; ", lambda y: None),
        (TypeError, r"^model must return the logits, .*, got a Output; ", lambda y: Output(None)),
        (TypeError, r"^model must return the logits, .*, got a ModelOutput; ", lambda y: ModelOutput(scores=y)),
        (ValueError, r"^model must return shape \[16, K\] for a batch of 16, got \[15, 4\]", lambda y: y[1:]),
        (ValueError, r"^model must return shape \[16, K\] for a batch of 16, got \[15, 4\]", lambda y: Output(y[1:])),
        (ValueError, r"^model must return shape .*, got \[16\]", lambda y: y[:, 0]),
        (ValueError, r"^num_classes must be 3, the logits that model returns a row, got 4", lambda y: y[:, 1:]),
        (TypeError, r"^model must return floating-point logits, got torch.int64", lambda y: y.long()),
    ],
)
def test_what_a_model_must_return(error, message, output):
    model = Network()
    with pytest.raises(error, match=message):
        run(lambda batch: output(model(batch)))


def test_a_shape_that_changes_between_batches():
    """Every batch is checked, not only the first."""
    forward = Forward(lambda batch: batch.flatten(1)[:, : 4 if len(batch) == 16 else 3], 4, CPU)
    with forward.running():
        assert forward(BATCH).shape == (16, 4)
        with pytest.raises(ValueError, match="num_classes must be 3, the logits that model returns a row"):
            forward(BATCH[:5])
        assert forward(BATCH).shape == (16, 4)


# The modes of a module


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("compile", [False, True])
def test_modes_are_restored(fail, compile):
    """Eval mode and no gradients meanwhile, and each submodule back in its own mode, also after an error."""
    model = Network().train()
    model.layers[3].training = model.layers[4].training = False
    model.layers.training = False
    before = [module.training for module in model.modules()]
    assert before == [True, False, True, True, True, False, False]
    forward = Forward(model, 3 if fail else 4, CPU, compile=compile)
    with pytest.raises(ValueError, match=r"num_classes must be 4, .*, got 3") if fail else nullcontext(), forward.running():
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        found = forward(BATCH)
        assert torch.equal(forward(BATCH), found)  # no dropout
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_an_error_in_the_model_comes_through():
    def model(batch):
        raise KeyError("out of luck")

    with pytest.raises(KeyError, match="out of luck"):
        run(model)


def test_modes_are_restored_where_eval_itself_fails():
    class Stubborn(nn.Sequential):
        def eval(self):
            super().eval()
            raise RuntimeError("never")

    model = Stubborn(nn.Dropout()).train()
    with pytest.raises(RuntimeError, match="never"), evaluating(modules_of(model)):
        pass
    assert model.training
    assert model[0].training


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compile", [False, True])
def test_autocast(dtype, compile):
    model = Network().eval()
    found = run(model, autocast=dtype, compile=compile)
    with torch.autocast("cpu", dtype):
        expected = model(BATCH)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert run(model).dtype == torch.float32


@pytest.mark.parametrize("make", [Network, sequential])
def test_one_model_under_several_dtypes(make):
    """Compiled for each of them in turn: what is recorded is what it returned."""
    torch._dynamo.reset()
    model, dtypes = make(), []
    model.register_forward_hook(lambda module, arguments, output: dtypes.append(str(output.dtype)))
    for autocast in (torch.bfloat16, torch.float16, None, torch.bfloat16):
        for size in (16, 7):
            options = {"n": 16, "n0": 3, "batch_size": size, "autocast": autocast, "compile": True, "alpha": 0.1, "seed": 1}
            [found] = rsfast.certify(model, BATCH[:1], rsfast.Gaussian(0.25), num_classes=4, **options)
            assert found.execution.autocast == (None if autocast is None else str(autocast).removeprefix("torch."))
            assert dtypes[-1] == str(autocast or torch.float32)


def test_the_autocast_of_the_caller_is_told():
    """What the attribute says is how the model runs, whatever context it is called in later."""
    model = Network()
    with torch.autocast("cpu", torch.bfloat16):
        inside = Forward(model, 4, CPU)
        assert Forward(model, 4, CPU, autocast=torch.float16).autocast == torch.float16
    outside = Forward(model, 4, CPU)
    assert (inside.autocast, outside.autocast) == (torch.bfloat16, None)
    with inside.running():
        assert inside(BATCH).dtype == torch.bfloat16
    with outside.running(), torch.autocast("cpu", torch.bfloat16):
        assert outside(BATCH).dtype == torch.float32


# torch.compile


def graphs():
    """How many graphs torch.compile has made in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("make", [Network, sequential, lambda: Network().eval().forward])
def test_compile(make):
    """The eager model's logits to 1e-5; a graph for the first batch size, one for all others, none for a second Forward."""
    torch._dynamo.reset()
    model = make()
    before = graphs()
    for size in (16, 16, 7, 9):
        found = run(model, BATCH[:size], compile=True)
        torch.testing.assert_close(found, run(model, BATCH[:size]), rtol=0, atol=1e-5)
    assert graphs() == before + 2


def test_a_compiled_model_can_go():
    model = Network()
    reference = weakref.ref(model)
    run(model, compile=True)
    del model
    assert reference() is None


def test_what_stops_the_compiler_comes_through(monkeypatch):
    def no_compiler(*arguments):
        raise OSError("no C++ compiler")

    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", no_compiler)
    with pytest.raises(Exception, match=r"no C\+\+ compiler"):
        run(Network(), compile=True)


@pytest.mark.parametrize("make", [Network, sequential])
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_hooks(make, compile, elsewhere):
    """Each runs once a batch, its result counts, and it may come and go at any time: also where the model, or another of its
    class, was compiled before by somebody who did not mind hooks."""
    torch._dynamo.reset()
    model, calls = make().eval(), []
    if elsewhere:
        with torch.inference_mode():
            torch.compile(model)(BATCH)
    plain = run(model, compile=compile)
    last = list(model.modules())[-1]
    hooks = [
        last.register_forward_pre_hook(lambda module, arguments: calls.append("before")),
        last.register_forward_hook(lambda module, arguments, output: 2 * output),
        model.register_forward_hook(lambda module, arguments, output: calls.append("after")),
    ]
    for _ in range(3):
        torch.testing.assert_close(run(model, compile=compile), 2 * plain, rtol=0, atol=1e-5)
    assert calls == ["before", "after"] * 3
    for hook in hooks:
        hook.remove()
    assert torch.equal(run(model, compile=compile), plain)
    assert len(calls) == 6


# CUDA graphs, with a fake of torch.cuda: capturing computes nothing, and replaying computes into the same logits


class FakeCuda:
    def __init__(self, monkeypatch):
        self.events, self.capturing, self.stream, self.full = [], None, "main", False
        fake = self

        class CUDAGraph:
            def replay(self):
                fake.events.append("replay")
                self.logits.copy_(fake.compute(self.batch))

        class Stream:
            def __init__(self, name="side"):
                self.name = name

            def wait_stream(self, other):
                fake.events.append(f"{self.name} waits for {other.name}")

        @contextmanager
        def on(stream):
            before, fake.stream = fake.stream, stream.name
            try:
                yield
            finally:
                fake.stream = before

        @contextmanager
        def graph(graph, stream, capture_error_mode):
            assert capture_error_mode == "thread_local"
            fake.capturing = graph
            with on(stream):
                yield
            fake.capturing = None

        fakes = {"CUDAGraph": CUDAGraph, "Stream": Stream, "stream": on, "graph": graph, "device": lambda _: nullcontext()}
        for name, each in (fakes | {"current_stream": lambda: Stream(fake.stream)}).items():
            monkeypatch.setattr(torch.cuda, name, each)

    def compute(self, batch):
        return batch.flatten(1)[:, :4]

    def model(self, batch):
        self.events.append(f"{'capture' if self.capturing else 'run'} {len(batch)} on {self.stream}")
        if self.full and self.stream == "side":
            raise torch.cuda.OutOfMemoryError
        logits = self.compute(batch).clone()
        if self.capturing:
            logits.zero_()
            self.capturing.batch, self.capturing.logits = batch, logits
        return logits


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


RUN = "run {} on main"
CAPTURE = ("side waits for main", *["run {} on side"] * 3, "main waits for side", "capture {} on side", "replay")


def test_what_is_captured_and_what_replayed(cuda):
    """Two calls in a row with one batch make a graph; another shape, dtype or address runs eagerly and leaves it be."""
    forward = Forward(cuda.model, 4, CUDA, cuda_graph=True)
    buffer, other = BATCH.clone(), BATCH.clone()
    last, half = buffer[:5], buffer.view(torch.bfloat16)[:, :, :, :2]
    plan = [
        (buffer, [RUN]),
        (buffer, CAPTURE),
        (buffer, ["replay"]),
        (last, [RUN]),
        (buffer, ["replay"]),
        (last, [RUN]),
        (half, [RUN]),
        (other, [RUN]),
        (buffer, ["replay"]),
        (other, [RUN]),
        (other, CAPTURE),
        (other, ["replay"]),
        (buffer, [RUN]),
        (buffer[:], CAPTURE),  # another tensor of the same memory
    ]
    for step, (batch, events) in enumerate(plan):
        cuda.events.clear()
        buffer += 1
        assert torch.equal(forward(batch), cuda.compute(batch)), step
        assert cuda.events == [event.format(len(batch)) for event in events], step


def test_a_graph_that_was_released_is_made_anew(cuda):
    """As where memory ran out; not before the second call, as at the beginning."""
    forward = Forward(cuda.model, 4, CUDA, cuda_graph=True)
    for events in ([RUN], CAPTURE, ["replay"], None, [RUN], CAPTURE, ["replay"]):
        cuda.events.clear()
        if events is None:
            forward.release()
            continue
        assert torch.equal(forward(BATCH), cuda.compute(BATCH))
        assert cuda.events == [event.format(len(BATCH)) for event in events]


def test_a_graph_of_a_compiled_model(cuda, monkeypatch):
    """What is warmed up and captured is what torch.compile returned."""

    def compile(model, backend):
        return lambda batch: cuda.events.append("compiled") or model(batch)

    monkeypatch.setattr(torch, "compile", compile)
    forward = Forward(cuda.model, 4, CUDA, compile=True, cuda_graph=True)
    for _ in range(3):
        assert torch.equal(forward(BATCH), cuda.compute(BATCH))
    expected = [event.format(16) for event in (RUN, *CAPTURE, "replay")]
    assert [event for event in cuda.events if event != "compiled"] == expected
    assert cuda.events.count("compiled") == sum(event.startswith(("run", "capture")) for event in expected)
    assert torch.equal(forward.eagerly(BATCH), cuda.compute(BATCH))
    assert cuda.events[-1] == RUN.format(16)
    assert cuda.events[-2] != "compiled"


def test_a_capture_that_fails_leaves_no_graph(cuda):
    """The error comes through, and the next calls begin anew."""
    forward = Forward(cuda.model, 4, CUDA, cuda_graph=True)
    small = BATCH[:8].clone()
    for batch in (BATCH, BATCH, small):
        forward(batch)
    cuda.full = True
    with pytest.raises(torch.cuda.OutOfMemoryError):
        forward(small)
    cuda.full = False
    for batch, events in ((BATCH, [RUN]), (small, [RUN]), (small, CAPTURE)):
        cuda.events.clear()
        assert torch.equal(forward(batch), cuda.compute(batch))
        assert cuda.events == [event.format(len(batch)) for event in events]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_replay_computes_what_the_model_does(autocast):
    model, buffer = Network().cuda().eval(), torch.empty(16, 3, 2, 2, device=CUDA)
    forward, plain = (Forward(model, 4, CUDA, autocast=autocast, cuda_graph=graph) for graph in (True, False))
    with forward.running():
        for size in (16, 16, 16, 16, 5, 16):
            buffer.copy_(torch.rand(16, 3, 2, 2))
            torch.testing.assert_close(forward(buffer[:size]), plain(buffer[:size]))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (
            TypeError,
            r"^autocast must be None or one of torch.bfloat16, torch.float16, or a name: 'bfloat16', .*, got torch.float32",
            {"autocast": torch.float32},
        ),
        (ValueError, r"^autocast must be .* or a name: 'bfloat16', 'float16', got 'float64'$", {"autocast": "float64"}),
        (TypeError, r"^autocast must be None or .*, got False", {"autocast": False}),
        (ValueError, r"^cuda_graph must be False where inputs is on 'cpu', got True", {"cuda_graph": True}),
    ],
)
def test_options(error, message, options):
    with pytest.raises(error, match=message):
        Forward(Network(), 4, CPU, **options)


def test_autocast_that_torch_cannot_do(monkeypatch):
    """Where torch would warn and go on in float32."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: True)
    with pytest.raises(
        ValueError, match=r"^autocast must be None on 'cuda', where torch .* cannot do it, got torch.float16"
    ):
        Forward(Network(), 4, CUDA, autocast=torch.float16)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.cuda.OutOfMemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_error_of_the_cpu_allocator():
    """As this torch words it: 2^60 bytes are more than any machine has."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
