"""Importing this module teaches transformers to load what `llmc lossless` and `quantize --entropy` wrote, bit for bit.

    import llmc.hf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("model-lossless")

transformers' own quantizer hooks do it: the stored bytes of every tensor go through an operation that decodes them
before anything else looks at them. The model is an ordinary dense one afterwards. Codes that a quantizer packed are
decoded to the values that the reference kernels give.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmc.encodings.coding import coded_head, coded_tensor
from llmc.errors import CheckpointError, UnsupportedError
from llmc.files.bytes import as_bytes
from llmc.files.strict_json import short
from llmc.formats.coded_files import INDEX, SINGLE, CodedTensors
from llmc.formats.read import READABLE, Packed, find_packed, refuse_undecodable
from llmc.models.config import built_in
from llmc.threads import cores

METHOD = "llmc"
EVERYTHING = "(.+)"
CODES = r"^(.+)\.(?:weight_packed|qweight)$"
"""Names of packed codes that are not the name of the weight."""


@register_quantization_config(METHOD)
class LosslessConfig(QuantizationConfigMixin):
    """`quantization_config` of a lossless folder.

    Attributes:
        mode: the one it was written in.
        weights: the file that loading begins with: the only one, or the index of several.
        original: the `quantization_config` of what was coded, None for a model that was not quantized.
        transposed: names of the weights that modules hold transposed.
    """

    def __init__(
        self,
        mode: str = "balanced",
        weights: str = SINGLE,
        dequantize: bool = True,
        original: dict[str, Any] | None = None,
        transposed: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' enum is closed, its registry is not
        self.mode, self.weights, self.dequantize = mode, weights, True
        self.original, self.transposed = original, list(transposed)
        if weights not in (SINGLE, INDEX):
            raise CheckpointError(f"quantization_config names the weights {weights!r}", fix=f"{SINGLE} or {INDEX}")


@register_quantizer(METHOD)
class LosslessQuantizer(HfQuantizer):
    """Decodes tensors as they are loaded."""

    requires_calibration = True  # there is nothing to quantize on the fly

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.tensors: CodedTensors | None = None
        self.packed: dict[str, Packed] = {}  # name of the codes on disk -> the matrix
        self.originals: dict[int, Any] = {}  # id of a conversion that decodes -> the model's own, None for ours

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the weight file before transformers looks for one, and refuse kernels before it fetches any.

        Raises UnsupportedError for an implementation that transformers does not have itself.
        """
        for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
            refuse_kernels(part)
        method: Any = self.quantization_config
        config.transformers_weights = method.weights
        return config

    def update_dtype(self, dtype: Any) -> Any:
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        files = [Path(file) for file in kwargs.get("checkpoint_files") or ()]
        if files:
            self.tensors = CodedTensors(files[0] if len(files) == 1 else files[0].parent)
            with torch.device("cpu"):  # transformers calls this under that of a model without memory
                self._find_packed(self.tensors, model)
        _forget_weights(model.config)
        return model

    def _find_packed(self, tensors: CodedTensors, model: Any) -> None:
        """The encoded matrices; their other tensors are read with the codes, and are no surprise to transformers."""
        method: Any = self.quantization_config
        if method.original is None:
            return
        entries = tensors.dense_entries()
        config = {"quantization_config": method.original}
        readable = method.original.get("quant_method") in READABLE
        matrices = find_packed(entries, config, tensors.read) if readable else {}
        refuse_undecodable(config, entries, matrices)
        found = matrices.values()
        self.packed = {matrix.codes.name: matrix for matrix in found}
        locals_ = {re.escape(local) for matrix in found for local in matrix.parts}  # modules may have other names
        ignored = {rf"\.(?:{'|'.join(sorted(locals_ - {'weight'}))})$"} if locals_ else set()
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *ignored}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        _forget_weights(model.config)
        used = getattr(model, "_weight_conversions", None)  # what saving goes by; from 5.24 on forgotten by itself
        if used is not None:
            own = (self.originals.get(id(each), each) for each in used)
            model._weight_conversions = [each for each in own if each is not None]
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """No cast of the stored bytes; the operation casts what it decoded, as transformers would have."""
        for operation in getattr(converter, "operations", ()):
            if isinstance(operation, Decode):
                operation.dtype = dtype
        return None

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Decode before whatever the model's own conversions do, and where it has none."""
        out = []
        for conversion in weight_conversions:
            made = conversion
            if isinstance(conversion, WeightConverter):
                made = Named.of(conversion, Decode(self))
            self.originals[id(made)] = conversion
            out.append(made)
        codes, others = WeightRenaming(CODES, r"\1.weight"), Named(EVERYTHING, r"\1", [DecodeAlone(self)])
        self.originals |= {id(codes): None, id(others): None}
        return [codes, *out, others]

    def is_serializable(self) -> Any:
        return True

    @property
    def is_trainable(self) -> Any:
        return True


class Named(WeightConverter):
    """A conversion that tells its first operation, a `Decode`, the names on disk of the tensors it collects."""

    __slots__ = ()

    @classmethod
    def of(cls, conversion: WeightConverter, decode: Decode) -> Named:
        """`conversion` with `decode` before its own operations."""
        sources, targets = conversion._original_source_patterns, conversion._original_target_patterns
        made = cls(list(sources), list(targets), [decode, *conversion.operations], conversion.force_cpu)
        made.scope_prefix, made.base_model_prefix = conversion.scope_prefix, conversion.base_model_prefix
        return made

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        first: Any = self.operations[0]
        first.names[source_pattern].append(source_key)
        super().add_tensor(target_key, source_key, source_pattern, future)


class Decode(ConversionOps):
    """Stored bytes to tensors: the first operation on every tensor of a lossless folder."""

    def __init__(self, quantizer: Any, dtype: Any = None) -> None:
        self.quantizer, self.dtype = quantizer, dtype
        self.names: dict[str, list[str]] = defaultdict(list)  # pattern -> names on disk, in the order of the tensors

    def __deepcopy__(self, memo: dict[int, Any]) -> Decode:
        return type(self)(self.quantizer, self.dtype)

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Every tensor of `input_dict`, or of its lists, decoded and in the dtype of the model."""
        return {
            key: [self._decoded(v, name) for v, name in zip(value, self.names[key], strict=True)]
            for key, value in input_dict.items()
        }

    def _decoded(self, stored: torch.Tensor, name: str) -> torch.Tensor:
        matrix = self.quantizer.packed.get(name)
        tensor = self._values(stored) if matrix is None else self._matrix(matrix)
        wanted = self.dtype if tensor.is_floating_point() else None
        return tensor.to(device=stored.device, dtype=wanted)

    def _matrix(self, matrix: Packed) -> torch.Tensor:
        """The values of an encoded matrix, as its module holds them."""
        values = matrix.decode()
        turned = f"{matrix.name}.weight" in self.quantizer.quantization_config.transposed
        return values.t().contiguous() if turned else values

    def _values(self, stored: torch.Tensor) -> torch.Tensor:
        data = as_bytes(stored.cpu())
        head = coded_head.parse_head(data)
        tensors = self.quantizer.tensors
        if head.kind != coded_head.SAME:
            return coded_tensor.decode(data, head, threads=cores())
        if tensors is not None:
            return tensors.load(coded_tensor.same_as(data), threads=cores())
        raise CheckpointError("a tensor that repeats one of another file", fix="load the whole folder")


class DecodeAlone(Decode):
    """The same for a tensor that the model has no conversion for: its name is the one it is loaded under."""

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        (value,) = super().convert(input_dict).values()
        return {kwargs["full_layer_name"]: value}


def refuse_kernels(config: Any) -> None:
    """Raise UnsupportedError where a config of transformers asks for attention or experts that may be fetched."""
    for key in ("_attn_implementation", "_experts_implementation"):
        value = getattr(config, key, None)
        if not built_in(value):
            raise UnsupportedError(
                f"{short(repr(value))} ({key.strip('_')}) may be fetched as code",
                fix="take it out of config.json; after loading, model.set_attn_implementation takes any",
            )


def _forget_weights(config: Any) -> None:
    """The key must never reach a config.json: a plain load would take the coded bytes for weights."""
    if hasattr(config, "transformers_weights"):
        del config.transformers_weights
