"""Which of the libraries beside torch is the OpenMP runtime that it computes with."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from rsfast.ops import openmp


@pytest.mark.parametrize(
    ("files", "loaded", "found"),
    [
        (["torch/lib/libomp.dylib", "torch/lib/libtorch_cpu.dylib"], {"libomp.dylib"}, "libomp.dylib"),
        (["torch/lib/libiomp5.so", "torch/lib/libgomp-1.so.1"], {"libiomp5.so"}, "libiomp5.so"),
        (
            ["torch.libs/libarm_compute-2.so", "torch.libs/libgomp-3.so.1.0.0"],
            {"libarm_compute-2.so", "libgomp-3.so.1.0.0"},  # both find GOMP_parallel: one needs the other
            "libgomp-3.so.1.0.0",
        ),
        (["torch/lib/libgomp-1.so.1"], set(), None),
        ([], set(), None),
    ],
    ids=["macOS arm64", "the loaded one of two", "Linux aarch64", "not loaded", "none"],
)
def test_the_runtime_of_a_torch(files, loaded, found, tmp_path, monkeypatch):
    """Files of the names that torch's wheels have; those that are loaded have the functions."""

    def load(path, mode):
        name = path.rpartition("/")[2]
        if name not in loaded:
            raise OSError(f"{name} is not loaded")
        return SimpleNamespace(GOMP_parallel=name, omp_set_num_threads=name)

    for file in ("torch/__init__.py", *files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch/__init__.py"))
    monkeypatch.setattr(ctypes, "CDLL", load)
    name, library = openmp.runtime.__wrapped__() or (None, None)
    assert name == found
    assert library is None or library.GOMP_parallel == found
