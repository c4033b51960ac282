"""The trellis method on bare matrices: the bits asked for, the error it notes, and what it is better than."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from matrices import context, hessian, loss, weights

from llmc.calibration.statistics import Hessian
from llmc.compressors import trellis
from llmc.compressors.gptq import Gptq
from llmc.compressors.trellis import Trellis
from llmc.encodings.coding import tensor_coder, trellis_stream
from llmc.encodings.encoded import Encoded
from llmc.encodings.trellis import MOST_CODE
from llmc.errors import UsageError

STATES = (1, 4, 8, 16, 32, 64)


def stored_bits(matrix: Encoded) -> float:
    return 8 * tensor_coder.quantized(matrix).nbytes / (matrix.shape[0] * matrix.shape[1])


def same(one: Encoded, other: Encoded) -> bool:
    return np.array_equal(trellis_stream.pack(one), trellis_stream.pack(other))


@pytest.mark.parametrize("shape", [(256, 256), (512, 128), (300, 520), (700, 99)])
@pytest.mark.parametrize("rate", [1.0, 2.5, 3.3, 6.0])
@pytest.mark.parametrize("states", [1, 8, 64])
def test_takes_the_bits_asked_for(shape: tuple[int, int], rate: float, states: int) -> None:
    notes = context()
    found = Trellis(bits_per_weight=rate, states=states)(weights(*shape), {"hessian": hessian(shape[1])}, notes)
    assert 0.99 <= stored_bits(found) / rate <= 1.0
    assert "over_budget" not in notes.notes


@pytest.mark.parametrize("rate", [2.0, 3.3, 6.0])
def test_small_matrices_take_no_more(rate: float) -> None:
    found = Trellis(bits_per_weight=rate)(weights(64, 96), {"hessian": hessian(96)}, context())
    assert 0.98 <= stored_bits(found) / rate <= 1.0


def test_a_rate_of_the_context_comes_first() -> None:
    found = Trellis(bits_per_weight=3.0)(weights(256, 128), {"hessian": hessian(128)}, context(rates=(4.5,)))
    assert 0.99 <= stored_bits(found) / 4.5 <= 1.0


def test_what_no_step_can_reach_is_noted() -> None:
    """The steps of columns and the tables alone take more."""
    notes = context()
    found = Trellis(bits_per_weight=0.25)(weights(17, 200), {"hessian": hessian(200)}, notes)
    assert notes.notes["over_budget"] == pytest.approx(stored_bits(found) - 0.25, abs=1e-4)
    assert notes.notes["over_budget"] > 0


@pytest.mark.parametrize("rows", [1, 2])
def test_a_single_row_is_not_given_up(rows: int) -> None:
    """Though no step meets the bits asked for."""
    notes = context()
    Trellis(bits_per_weight=4.0)(weights(rows, 512), {"hessian": hessian(512)}, notes)
    assert notes.notes["over_budget"] > 0 and notes.notes["relative_error"] < 0.15


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_notes_the_error_of_the_decoded_values(states: int, act_order: bool, dtype: torch.dtype) -> None:
    """Against traces in float64; dead columns, several slabs and two segments of rows included."""
    H, w = hessian(200, dead=(3, 150), count=300), weights(300, 200).to(dtype)
    notes = context()
    method = Trellis(bits_per_weight=2.5, states=states, act_order=act_order, slab=48)
    found = method(w, {"hessian": H}, notes)
    signal = float((w.double() @ H.mean().double() * w.double()).sum())
    assert found.dtype == dtype and found.dequantize().dtype == dtype
    assert notes.notes["relative_error"] == pytest.approx(loss(w, found, H.mean()) / signal, rel=1e-4)
    assert 0.005 < notes.notes["relative_error"] < 0.05


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [None, 32])
def test_better_than_gptq_in_no_more_bits(bits: int, group_size: int | None) -> None:
    H, w = hessian(256), weights(256, 256, bits).bfloat16()
    theirs = Gptq(bits=bits, group_size=group_size)(w, {"hessian": H}, context())
    rate = bits + 16 / (group_size or 256)
    ours = Trellis(bits_per_weight=rate)(w, {"hessian": H}, context())
    assert stored_bits(ours) <= rate
    assert loss(w, ours, H.mean()) < 0.7 * loss(w, theirs, H.mean())


def test_the_feedback_pays() -> None:
    """With the Hessian the error under it is less than without, for every kind of machine."""
    H, w = hessian(256), weights(256, 256).bfloat16()
    for states in (1, 8):
        method = Trellis(bits_per_weight=3.0, states=states)
        errors = [loss(w, method(w, stats, context()), H.mean()) for stats in ({"hessian": H}, {})]
        assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("rate", [1.5, 3.0])
def test_more_states_are_not_worse(rate: float) -> None:
    H, w = hessian(256), weights(512, 256)
    errors, used = [], []
    for states in STATES:
        found = Trellis(bits_per_weight=rate, states=states)(w, {"hessian": H}, context())
        errors.append(loss(w, found, H.mean()))
        used.append(stored_bits(found))
    level = [error * 4 ** (bits - rate) for error, bits in zip(errors, used, strict=True)]  # at equal bits
    assert level[1] < 0.86 * level[0]
    assert all(more < 1.01 * fewer for fewer, more in itertools.pairwise(level))
    assert level[-1] < 0.97 * level[1]


def test_at_high_rates_uniform_quantization_is_a_quarter_of_a_bit_from_the_bound() -> None:
    """Entropy coded uniform levels of normal weights: error 2 pi e / 12 times 4^-rate; a trellis comes nearer."""
    w = weights(512, 512)
    bound = float(w.double().square().sum()) * 4**-5.0
    ratio = {}
    for states in (1, 8, 64):
        found = Trellis(bits_per_weight=5.0, states=states)(w, {}, context())
        ratio[states] = float((w.double() - found.dequantize().double()).square().sum()) / bound
        ratio[states] *= 4 ** (stored_bits(found) - 5.0)
    assert ratio[1] == pytest.approx(2 * torch.pi * torch.e / 12, rel=0.05)
    assert 1.0 < ratio[64] < ratio[8] < 0.88 * ratio[1]


@pytest.mark.parametrize("stats", [{}, {"hessian": Hessian(96)}])
def test_inputs_never_seen_count_alike_and_are_noted(stats: dict[str, Any]) -> None:
    notes, w = context(), weights(256, 96)
    found = Trellis(bits_per_weight=3.0)(w, stats, notes)
    assert notes.notes["uncalibrated"] is True
    error = float((w.double() - found.dequantize().double()).square().sum() / w.double().square().sum())
    assert notes.notes["relative_error"] == pytest.approx(error, rel=1e-4)
    assert int(found.grid.step_code.max()) == 0  # type: ignore[attr-defined]
    identity = Hessian(96)
    identity.update(torch.eye(96))
    assert same(found, Trellis(bits_per_weight=3.0, damping=0.0)(w, {"hessian": identity}, context()))


def test_dead_columns_become_zero() -> None:
    notes, dead = context(), (0, 17, 95)
    found = Trellis()(weights(64, 96), {"hessian": hessian(96, dead=dead)}, notes)
    assert notes.notes["dead_columns"] == 3
    zero = (found.dequantize() == 0).all(0)
    assert zero.nonzero().flatten().tolist() == list(dead)


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("size", [1e3, -1e3, 1e6])
@pytest.mark.parametrize("calibrated", [True, False])
def test_an_outlier_is_kept(states: int, size: float, calibrated: bool) -> None:
    w = weights(256, 96)
    w[37, 11] = size
    stats = {"hessian": hessian(96)} if calibrated else {}
    found = Trellis(bits_per_weight=3.0, states=states)(w, stats, context())
    values = found.dequantize()
    assert values.isfinite().all()
    step = float(found.grid.steps[11])  # type: ignore[attr-defined]
    assert abs(float(values[37, 11]) - size) <= (4 if calibrated else 1) * step  # of others, errors are carried to it
    assert int(found.codes.abs().max()) <= MOST_CODE
    again = trellis_stream.unpack(trellis_stream.pack(found), found.shape, found.dtype)
    assert torch.equal(again.codes, found.codes)
    if not calibrated and abs(size) < 1e4:  # the rest is as good as without it, about
        assert float((values[:37].double() - w[:37].double()).square().mean()) < 0.04


@pytest.mark.parametrize("matrix", [torch.zeros(64, 48), torch.full((64, 48), 0.25)])
def test_matrices_of_one_value(matrix: torch.Tensor) -> None:
    notes = context()
    found = Trellis(bits_per_weight=3.0)(matrix, {"hessian": hessian(48)}, notes)
    assert float((found.dequantize() - matrix).abs().max()) <= 0.05
    assert stored_bits(found) <= 3.0 and notes.notes["relative_error"] < 0.01


@pytest.mark.parametrize("shape", [(700, 96), (1, 300)])
def test_workers_and_threads_do_not_matter(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trellis, "SEGMENTS", 1)
    H, w = hessian(shape[1]), weights(*shape).bfloat16()
    whole = Trellis()(w, {"hessian": H}, context(workers=1))
    before = torch.get_num_threads()
    try:
        for workers, threads in ((2, 1), (3, 2), (1, 3)):
            torch.set_num_threads(threads)
            assert same(whole, Trellis()(w, {"hessian": H}, context(workers=workers)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_arithmetic_is_in_float32(dtype: torch.dtype) -> None:
    H, w = hessian(128), weights(256, 128)
    notes = context(dtype)
    assert same(Trellis()(w, {"hessian": H}, context()), Trellis()(w, {"hessian": H}, notes))
    assert "relative_error" in notes.notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(300, 96), (1100, 1000)])
def test_decoding_is_the_definition(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """`dequantize`, whole and by rows, and the compiled decoder agree bit for bit, also beyond one tile of decoding."""
    w = weights(*shape).to(dtype)
    w[5, 7] = 300.0
    found = Trellis(bits_per_weight=2.2)(w, {}, context())
    values = found.dequantize()
    for a, b in ((0, 1), (3, 259), (299, 300)):
        assert torch.equal(found.rows(a, b).dequantize(), values[a:b])
    stream = trellis_stream.pack(found)
    for path, threads in (("auto", 1), ("auto", 3)):
        out = torch.empty(shape, dtype=dtype)
        data = out.view(torch.uint8).numpy().reshape(-1)
        trellis_stream.decode_into(stream, shape, dtype, data, threads=threads, path=path)
        assert torch.equal(out.view(torch.uint8), values.view(torch.uint8))


def test_classes_and_steps_of_columns_pay() -> None:
    """On rows and columns of very different sizes, and inputs of very different activity."""
    draw = torch.Generator().manual_seed(1)
    w = weights(512, 128) * torch.exp(torch.randn(512, 1, generator=draw)) * torch.exp(torch.randn(128, generator=draw))
    H = Hessian(128)
    H.update(torch.randn(400, 128, generator=draw) * torch.logspace(-1, 1, 128))
    errors = {}
    for classes, steps in ((True, 0.75), (False, 0.75), (True, 0.0)):
        method = Trellis(bits_per_weight=3.0, classes=classes, column_steps=steps)
        errors[classes, steps] = loss(w, method(w, {"hessian": H}, context()), H.mean())
    assert errors[True, 0.75] < 0.9 * errors[False, 0.75]
    assert errors[True, 0.75] < 0.9 * errors[True, 0.0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"bits_per_weight": 0.1}, "option bits_per_weight: 0.1 is out of range; use 0.25 to 7.5"),
    ({"bits_per_weight": 8}, "option bits_per_weight: 8 is out of range; use 0.25 to 7.5"),
    ({"bits_per_weight": float("nan")}, "option bits_per_weight: nan is out of range; use 0.25 to 7.5"),
    ({"states": 0}, "option states: 0 is out of range; use 1 to 64"),
    ({"states": 5}, "option states: no machine has 5; use 1, 4, 8, 16, 32, 64"),
    ({"damping": -1.0}, "option damping: -1.0 is out of range; use 0.0 to 10.0"),
    ({"column_steps": 2.0}, "option column_steps: 2.0 is out of range; use 0.0 to 1.0"),
    ({"tradeoff": 5.0}, "option tradeoff: 5.0 is out of range; use 0.0 to 4.0"),
    ({"slab": 8}, "option slab: 8 is out of range; use 16 to 4096"),
    ({"rates": "equals"}, "option rates: unknown value 'equals'; did you mean 'equal'?"),
    ({"propagate": "x"}, "option propagate: unknown value 'x'; choose one of: quantized, original"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED, ids=str)
def test_options_out_of_range(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        Trellis(**options)
    assert f"{caught.value.message}; {caught.value.fix}" == line
    assert caught.value.exit_code == 2
