"""Wanda against brute force, and what goes on from its zeros."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import context, hessian, loss, weights

from llmc.compressors.gptq import Gptq
from llmc.compressors.rtn import Rtn
from llmc.compressors.together import encode_together
from llmc.compressors.wanda import Wanda
from llmc.errors import UsageError


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), sparsity=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_the_least_scores_of_each_row_are_removed(seed: int, sparsity: float) -> None:
    W, H = weights(6, 16, seed), hessian(16, seed)
    out = Wanda(sparsity=sparsity)(W, {"hessian": H}, context())
    scores = W.abs() * H.mean().diagonal().sqrt()
    for row, kept, score in zip(W, out, scores, strict=True):
        gone = kept == 0
        assert int(gone.sum()) == round(sparsity * 16) and torch.equal(kept[~gone], row[~gone])
        assert not gone.any() or gone.all() or score[gone].max() <= score[~gone].min()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_patterns_keep_the_best_choice_of_every_group(pattern: str) -> None:
    W, H = weights(5, 16), hessian(16)
    kept, of = map(int, pattern.split(":"))
    out = Wanda(pattern=pattern)(W, {"hessian": H}, context())
    scores = (W.abs() * H.mean().diagonal().sqrt()).view(5, -1, of)
    for group, chosen in zip(scores.flatten(0, 1), (out != 0).view(5, -1, of).flatten(0, 1), strict=True):
        best = max(itertools.combinations(range(of), kept), key=lambda places: float(group[list(places)].sum()))
        assert chosen.nonzero().flatten().tolist() == list(best)


def test_without_statistics_magnitudes_count() -> None:
    W, own = weights(4, 8), context()
    out = Wanda()(W, {}, own)
    assert torch.equal(out != 0, W.abs() >= W.abs().sort(dim=1).values[:, 4:5]) and own.notes == {"uncalibrated": True}


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"symmetric": False}, {"group_size": None}])
@pytest.mark.parametrize("method", [Gptq, Rtn])
def test_quantizers_keep_the_zeros(method: Any, options: dict[str, Any]) -> None:
    if method is Rtn:
        options = {key: value for key, value in options.items() if key != "act_order"}
    H = hessian(48)
    (pruned,) = encode_together(Wanda(pattern="2:4"), [weights(20, 48)], {"hessian": H}, context())
    values = pruned.dequantize()
    own = context(keep=values != 0)
    quantizer = method(**{"bits": 4, "group_size": 16, **options})
    (made,) = encode_together(quantizer, [values], {"hessian": H}, own)
    assert not made.dequantize()[values == 0].any()
    if method is Gptq:
        rounded = Rtn(bits=4, group_size=quantizer.group_size, symmetric=quantizer.symmetric)
        (plain,) = encode_together(rounded, [values], {"hessian": H}, context(keep=values != 0))
        assert loss(values, made, H.mean()) < loss(values, plain, H.mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.5}, "option sparsity: 1.5 is out of range; use 0.0 to 1.0"),
        ({"pattern": "2/4"}, "option pattern: cannot read '2/4'; write it like 2:4"),
        ({"pattern": "4:4"}, "option pattern: 4:4 removes nothing; write it like 2:4"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Wanda(**options)
    assert str(error.value) == message
