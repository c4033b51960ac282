"""The model without its weights: instantiated on the meta device, its blocks found by structure, its names mapped.

Names on disk are not module names. transformers' own weight conversions translate them; here they are run on meta
tensors once, to learn which tensors on disk make which parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llmc.errors import CheckpointError
from llmc.files.safetensors import TensorEntry
from llmc.late import nn, torch

PLAIN = ("BF16", "F16", "F32", "F64")
QUANTIZED = re.compile(
    r"(.+)\.(qweight|qzeros|scales|g_idx|weight_(packed|scale|scale_inv|scale_2|zero_point|shape)|SCB"
    r"|(weight\.)?(absmax|quant_map|nested_absmax|quant_state\..*))"
)
"""Tensors that decode a matrix, in the formats there are."""
LEFTOVER = re.compile(r"[._](q|k|v|kv|input|output|weight)_scale$")
"""Scales of a cache or of activations that were quantized: of no use to a model whose config says nothing of them."""


@dataclass
class Group:
    """Tensors on disk that become one or more parameters together.

    `sources` holds `(name on disk, converter pattern)` in conversion order; `keys` the parameters they make.
    """

    name: str
    converter: Any = None
    sources: list[tuple[str, str | None]] = field(default_factory=list)
    keys: tuple[str, ...] = ()

    def convert(self, tensors: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
        """The parameters made of `tensors` (name on disk -> tensor)."""
        if self.converter is None:
            return {self.name: tensors[self.sources[0][0]]}
        run = deepcopy(self.converter)
        for name, pattern in self.sources:
            run.add_tensor(self.name, name, pattern, tensors[name])
        made = run.convert(self.name, model=model, config=model.config)
        return {k: v[0] if isinstance(v, list) else v for k, v in made.items()}


class Skeleton:
    """A transformers model on the meta device and the map between its parameters and the tensors on disk.

    `computed` and `leftover` hold the names on disk that are no weights: see `_computed` and `LEFTOVER`.

    Args:
        config: a transformers config.
        entries: name on disk -> entry.
        where: the folder's name, for messages.

    Raises CheckpointError for an unknown architecture, for missing, extra or wrongly shaped tensors, and for a model
    whose blocks cannot be found.
    """

    def __init__(self, config: Any, entries: dict[str, TensorEntry], where: str) -> None:
        self.where = where
        self.entries = entries
        self.model: Any = instantiate(config, where)
        self.groups, self.unused = self._map()
        self.group_of = {key: group for group in self.groups for key in group.keys}
        self.ties = self._ties()
        self.computed = self._computed()
        self.leftover = [n for n in self.unused if LEFTOVER.search(n) and n not in self.computed]
        self._check()
        self.blocks = find_blocks(self.model)
        if not self.blocks:
            raise CheckpointError(
                f"no blocks found in {type(self.model).__name__}: no list of modules that hold matrices",
                where=where,
                fix="llmc needs a transformers model with a stack of layers",
            )

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules())

    def block_of(self, key: str) -> str | None:
        """Path of the block that a module or parameter path lies in."""
        return next((b for b in self.blocks if key.startswith(b + ".")), None)

    @property
    def tied_heads(self) -> set[str]:
        """Paths of linear modules that have no tensor of their own on disk because they share an embedding's."""
        shared = {key.rpartition(".")[0] for key in self.ties}
        return {path for path in shared if isinstance(self.modules.get(path), nn.Linear)}

    def untie(self, keys: Sequence[str]) -> None:
        """Take parameters out of their tie."""
        for key in keys:
            rest = tuple(k for k in self.ties.pop(key, ()) if k != key)
            for other in rest:
                self.ties[other] = rest
                if len(rest) == 1:
                    del self.ties[other]

    def _map(self) -> tuple[list[Group], list[str]]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        rules = get_model_conversion_mapping(self.model)
        renamings = [r for r in rules if isinstance(r, WeightRenaming)]
        converters = [r for r in rules if isinstance(r, WeightConverter)]
        by_pattern: dict[str | None, Any] = {p: c for c in converters for p in c.source_patterns}
        state = self.model.state_dict()
        groups: dict[str, Group] = {}
        unused = []
        for name in sorted(self.entries, key=dot_natural_key):
            key, pattern = rename_source_key(name, renamings, converters, self.model.base_model_prefix, state)
            if key not in state and pattern is None and name in state:  # as transformers does: its own name is known
                key = name
            if pattern is None and key not in state:
                unused.append(name)
                continue
            group = groups.setdefault(key, Group(key, by_pattern.get(pattern)))
            group.sources.append((name, pattern))
        for group in groups.values():
            group.keys = self._keys_of(group)
        return list(groups.values()), unused

    def _keys_of(self, group: Group) -> tuple[str, ...]:
        if group.converter is None:
            return (group.name,)
        metas = {
            n: torch.empty(self.entries[n].shape, dtype=self.entries[n].dtype, device="meta") for n, _ in group.sources
        }
        try:
            return tuple(group.convert(metas, self.model))
        except Exception as error:  # transformers' operations raise whatever torch raises
            names = ", ".join(n for n, _ in group.sources[:3])
            raise CheckpointError(
                f"tensors {names}, ... do not form {group.name}: {error}", where=self.where
            ) from error

    def _ties(self) -> dict[str, tuple[str, ...]]:
        """Parameter path -> all paths that share its tensor."""
        tied: dict[str, set[str]] = {}
        for one, other in getattr(self.model, "all_tied_weights_keys", {}).items():
            union = tied.get(one, {one}) | tied.get(other, {other})
            for key in union:
                tied[key] = union
        return {key: tuple(sorted(union)) for key, union in tied.items()}

    def _computed(self) -> list[str]:
        """Names on disk of buffers that the model computes itself and never loads; older versions saved them.

        They may have been another module's then (rotary_emb.inv_freq of every layer), so the last two names decide;
        transformers ignores position_ids and rotary_emb.inv_freq wherever they are, where the model has such a buffer.
        """
        buffers = {_tail(name) for name, _ in self.model.named_non_persistent_buffers()}
        return [name for name in self.unused if _tail(name) in buffers]

    def _check(self) -> None:
        wrong = self._wrong_extra()
        if wrong:
            raise CheckpointError(
                f"tensor {wrong[0]} has no place in {type(self.model).__name__} ({len(wrong)} such)",
                where=self.where,
                fix="check that config.json belongs to these weights",
            )
        state = self.model.state_dict()
        for group in self.groups:
            self._check_shapes(group, state)
        optional = getattr(self.model, "_keys_to_ignore_on_load_missing", None) or []
        for key in state:
            present = any(k in self.group_of for k in self.ties.get(key, (key,)))
            if not present and not any(re.search(p, key) for p in optional):
                raise CheckpointError(
                    f"tensor {key} is missing: config.json asks for it",
                    where=self.where,
                    fix="download the model again",
                )

    @cached_property
    def extra(self) -> list[str]:
        """Names on disk that the model has no place for and that are kept: a draft's layer, scales of a cache, ..."""
        out = {*self.computed, *self.leftover}
        return [name for name in self.unused if name not in out]

    def _wrong_extra(self) -> list[str]:
        """Those of them that show that the config is not of these weights, or the weights are quantized."""
        ignored = getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or []
        extra = [n for n in (*self.extra, *self.leftover) if not any(re.search(p, n) for p in ignored)]
        weights = sum(self.entries[name].numel for name in extra)
        if 2 * weights > sum(entry.numel for entry in self.entries.values()):
            return extra
        deep = len(find_blocks(self.model)) + self._drafts()
        return [name for name in extra if self._beyond(name, deep) or self._decodes(name)]

    def _drafts(self) -> int:
        """Layers behind the last that config.json mentions: they draft tokens, and transformers leaves them out."""
        keys = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
        found = (getattr(self.model.config.get_text_config(), key, 0) for key in keys)
        return max((n for n in found if isinstance(n, int)), default=0)

    def _beyond(self, name: str, deep: int) -> bool:
        """Whether a tensor is of a layer behind the last one that the config has."""
        match = re.search(r"\b(?:layers|h|blocks?)\.(\d+)\.", name)
        return match is not None and not re.search(r"\b(mtp|nextn|eagle|draft)", name) and int(match[1]) >= deep

    def _decodes(self, name: str) -> bool:
        """Whether a tensor is needed to decode a matrix, which is stored as integers or in 8 bits, or not at all."""
        match = QUANTIZED.fullmatch(name)
        if match is None:
            return False
        weight = self.entries.get(f"{match[1]}.weight")
        return weight is None or weight.kind not in PLAIN

    def _check_shapes(self, group: Group, state: dict[str, torch.Tensor]) -> None:
        metas = {n: torch.empty(self.entries[n].shape, device="meta") for n, _ in group.sources}
        for key, made in group.convert(metas, self.model).items():
            if key in state and tuple(made.shape) != tuple(state[key].shape):
                raise CheckpointError(
                    f"tensor {group.sources[0][0]} has shape {list(made.shape)}, "
                    f"config.json asks for {list(state[key].shape)}",
                    where=self.where,
                    fix="check that config.json belongs to these weights",
                )


def instantiate(config: Any, where: str) -> Any:
    """The model of `config` with parameters on the meta device and real buffers."""
    import transformers
    from accelerate import init_empty_weights

    names = config.architectures or []
    if not isinstance(names, list) or not names:
        raise CheckpointError("config.json names no architecture", where=where, fix='add "architectures": ["..."]')
    cls = getattr(transformers, str(names[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"transformers {transformers.__version__} has no model {names[0]}", where=where, fix="upgrade transformers"
        )
    try:
        with init_empty_weights(include_buffers=False):
            model: Any = cls(config)
    except MemoryError:
        raise
    except Exception as error:  # whatever each architecture raises, an AssertionError of torch among it
        line = " ".join(str(error).split())[:300]
        raise CheckpointError(f"config.json does not describe a {names[0]}: {line}", where=where) from error
    return model.eval()


def initializes_by_name(model: Any) -> bool:
    """Whether the class initializes matrices through their parents, which fails where a packed module has no weight."""
    twin = deepcopy(model)
    for module in twin.modules():
        module._is_hf_initialized = False  # where it is set, nothing is tried
        if isinstance(module, nn.Linear):
            module._parameters.pop("weight", None)
    try:
        twin.initialize_weights()
    except AttributeError:
        return True
    return False


def find_blocks(model: nn.Module) -> list[str]:
    """Paths of the repeated layers, in module order: children of outermost module lists that hold matrices."""
    blocks: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(b + ".") or path == b for b in blocks)
        if isinstance(module, nn.ModuleList) and not inside and _is_stack(module):
            blocks += [f"{path}.{i}" for i in range(len(module))]
    return blocks


def _is_stack(modules: nn.ModuleList) -> bool:
    return len(modules) > 0 and all(any(p.ndim >= 2 for p in m.parameters()) and any(m.children()) for m in modules)


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def direct_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Every module that itself holds parameters: (path, module, parameter paths)."""
    for path, module in model.named_modules():
        names = [f"{path}.{n}" if path else n for n, _ in module.named_parameters(recurse=False)]
        if names:
            yield path, module, names
