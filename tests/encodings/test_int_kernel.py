"""The compiled loops of the integer grid against the torch functions that define them: every bit, on every path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import context, hessian

import llmc
from llmc import _native
from llmc.compressors.gptq import Gptq
from llmc.embedded import tiny_model_path
from llmc.encodings import int_kernel
from llmc.encodings.encoded import Params
from llmc.encodings.int_grid import IntGrid, ordered_sum

T = TypeVar("T")
PATHS = int_kernel.paths()
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@contextmanager
def torch_only() -> Iterator[None]:
    """No call reaches the extension."""
    with mock.patch.object(int_kernel, "applies", lambda *_: False), mock.patch.object(int_kernel, "_native", None):
        yield


@contextmanager
def only(path: str) -> Iterator[None]:
    """Every call runs the loops of one instruction set."""
    names = "grid_fit", "grid_round", "grid_slab", "grid_decode"
    with contextmanager(_patched)({name: getattr(_native, name) for name in names}, path):
        yield


def _patched(calls: dict[str, Callable[..., Any]], path: str) -> Iterator[None]:
    patches = [mock.patch.object(_native, name, _with_path(call, path)) for name, call in calls.items()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _with_path(call: Callable[..., T], path: str) -> Callable[..., T]:
    return lambda *arguments: call(*arguments[:-1], path)


def values(shape: tuple[int, ...], seed: int, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """Groups of many sizes, with what is hard: zeros, ties, denormal and huge numbers."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=draw) * torch.exp(3 * torch.randn(*shape[:-1], 1, generator=draw))
    if kind == "ties":
        w = (w * 4).round() / 8
    w = w * {"tiny": 1e-41, "huge": 1e36, "small": 1e-7}.get(kind, 1.0)
    limit = torch.finfo(dtype).max
    w = w.clamp(-limit, limit)
    w.view(-1, shape[-1])[::5] = 0
    return w.to(dtype)


def fitted(grid: IntGrid, w: torch.Tensor, importance: torch.Tensor | None) -> dict[str, torch.Tensor]:
    codes = torch.full(w.shape, 255, dtype=torch.uint8)
    return {**grid.fit_round(w, importance, codes), "codes": codes}


def same(one: Params, other: Params) -> bool:
    alike = all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in other)
    return one.keys() == other.keys() and alike


@settings(max_examples=250, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    search=st.sampled_from(["absmax", "mse"]),
    size=st.sampled_from([1, 2, 7, 16, 17, 32, 100, 128, 129, 1000]),
    rows=st.integers(1, 20),
    groups=st.integers(1, 3),
    seed=st.integers(0, 999),
    kind=st.sampled_from(["plain", "ties", "tiny", "small", "huge"]),
    weighted=st.sampled_from([None, "row", "columns"]),
    dtype=st.sampled_from(FLOATS),
    scales=st.permutations(["bfloat16", "float16", "float32"]).flatmap(
        lambda names: st.integers(1, 3).map(lambda n: tuple(names[:n]))
    ),
)
def test_fits_and_rounds_as_torch_does(
    bits: int,
    symmetric: bool,
    search: str,
    size: int,
    rows: int,
    groups: int,
    seed: int,
    kind: str,
    weighted: str | None,
    dtype: torch.dtype,
    scales: tuple[str, ...],
) -> None:
    grid = IntGrid(bits, size, symmetric, search, scales)
    w = values((rows, groups, size), seed, kind, dtype)
    importance = None
    if weighted is not None:
        shape = (size,) if weighted == "row" else (groups, size)
        importance = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) ** 8
        importance[..., ::3] = 0
    with torch_only():
        expected = fitted(grid, w, importance)
    for path in PATHS:
        with only(path):
            assert same(fitted(grid, w, importance), expected)
            params = grid.fit(w.float(), importance)
            assert same({**params, "codes": grid.round(w.float(), params)}, expected)


@settings(max_examples=100, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    size=st.sampled_from([1, 7, 16, 33, 128]),
    rows=st.integers(1, 9),
    kind=st.sampled_from(["plain", "ties", "tiny", "small", "huge"]),
    dtype=st.sampled_from(FLOATS),
    decoded=st.sampled_from(FLOATS),
)
def test_decodes_as_torch_does(
    bits: int, symmetric: bool, size: int, rows: int, kind: str, dtype: torch.dtype, decoded: torch.dtype
) -> None:
    grid = IntGrid(bits, size, symmetric, "mse", ("float32",))
    w = values((rows, 2, size), rows, kind, dtype)
    params = grid.fit(w)
    codes = grid.round(w, params)
    expected = grid.value(codes, params).to(decoded)
    results = [
        int_kernel.decode(codes, params["scale"], params.get("zero_point"), w, bits=bits, dtype=decoded, path=path)
        for path in PATHS
    ]
    for found, *sums in results:
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))  # signs of zero too
        assert tuple(sums) == results[0][1:]
    squares = [x.square().sum(dtype=torch.float64) for x in (w.float(), w.float() - expected.float())]
    assert results[0][1:] == pytest.approx([float(x) for x in squares], rel=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([None, 8, 16, 24, 48, 96]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    rows=st.integers(1, 40),
    dtype=st.sampled_from(FLOATS),
)
def test_gptq_rounds_as_torch_does(
    bits: int, group_size: int | None, symmetric: bool, act_order: bool, rows: int, dtype: torch.dtype
) -> None:
    method = Gptq(bits=bits, group_size=group_size, symmetric=symmetric, act_order=act_order)
    H, w = hessian(96, bits), values((rows, 96), rows, "plain", dtype)
    with torch_only():
        expected = method(w, {"hessian": H}, context())
    for path in PATHS:
        with only(path):
            encoded = method(w, {"hessian": H}, context())
        assert torch.equal(encoded.codes, expected.codes) and same(encoded.params, expected.params)


@given(n=st.integers(1, 200), seed=st.integers(0, 99))
def test_the_order_of_sums(n: int, seed: int) -> None:
    x = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    sums = [torch.tensor(0.0)] * 16
    for i, value in enumerate(x):
        sums[i % 16] = sums[i % 16] + value
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[: len(sums) // 2], sums[len(sums) // 2 :], strict=True)]
    assert torch.equal(ordered_sum(x), sums[0].unsqueeze(0))


def test_runs_on_what_it_is_made_for() -> None:
    w = torch.randn(4, 32)
    assert int_kernel.applies(w) and int_kernel.applies(w, torch.rand(32))
    assert not int_kernel.applies(w.double())
    assert not int_kernel.applies(w[:, ::2])
    assert not int_kernel.applies(w, torch.rand(16))
    assert not int_kernel.applies(torch.empty(0, 32))
    assert not int_kernel.applies(w.to("meta"))


def test_other_layouts_take_the_definition() -> None:
    grid, w = IntGrid(search="mse"), torch.randn(6, 256)
    codes = torch.zeros(128, 6, dtype=torch.uint8).t()
    params = grid.fit_round(w[:, ::2], None, codes)
    assert torch.equal(codes, grid.round(w[:, ::2].contiguous(), params))
    assert same(params, grid.fit(w[:, ::2].contiguous()))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"path": "mmx"}, "no path that this processor or build can run is named mmx"),
        ({"bits": 9}, "an integer grid has 2 to 8 bits"),
        ({"ratios": (1.0,)}, "a search tries 7 ratios and then 4"),
        ({"codes": torch.zeros(3, dtype=torch.uint8)}, "there is not one code for each value"),
        ({"importance": torch.ones(5)}, "the importance does not fill its groups"),
    ],
)
def test_sizes_are_checked(change: dict[str, Any], line: str) -> None:
    given: dict[str, Any] = {"importance": None, "bits": 4, "symmetric": True, "dtypes": ("float32",), **change}
    with pytest.raises(_native.CodecError) as caught:
        int_kernel.fit(torch.randn(4, 32), **given)
    assert str(caught.value) == line


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_whole_folder_is_the_same_without_the_loops(method: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The fox went to the market and bought a lamp. " * 200, encoding="utf-8")
    options: dict[str, Any] = {"calibration": str(text), "num_samples": 4} if method == "gptq" else {}
    write = partial(llmc.quantize, str(tiny_model_path()), method=method, **options)
    before, loops = torch.get_num_threads(), "grid_slab" if method == "gptq" else "grid_fit"
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with mock.patch.object(_native, loops, wraps=getattr(_native, loops)) as compiled:
                write(tmp_path / f"{threads}" / "out")
            assert compiled.called
        with torch_only():
            write(tmp_path / "torch" / "out")
    finally:
        torch.set_num_threads(before)
    seen = [digests(tmp_path / name / "out") for name in ("1", "2", "torch")]
    assert "model.safetensors" in seen[0]
    assert seen[0] == seen[1] == seen[2]


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
