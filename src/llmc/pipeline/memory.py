"""What a run will take in memory, estimated from above, and the sizes of batches that this follows from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from llmc.calibration.activations import held_within
from llmc.calibration.data import CalibrationOptions
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.recipe.recipe import Recipe
from llmc.targets import Target

IMPORTS = 360 << 20  # resident after importing torch and transformers, measured
WALKING = 64 << 20  # buffers of the matrix products, tokenizer and tokens
TOKENS_PER_BATCH = 2048
GRADIENT_PASSES = 32
"""Most passes back and forth that judge errors."""
LOGITS = 8  # matrices of logits at once: themselves, softmax, what is drawn, and gradients; measured
ACTIVATIONS = 4  # of a block on the way back, in outputs of its matrices


def needs_statistics(recipe: Recipe) -> bool:
    """Whether the model is run on calibration text."""
    return any(stage.needs_text for stage in recipe.stages)


def aims(recipe: Recipe) -> bool:
    """Whether the original model is run beside the one that is compressed."""
    return any(stage.aims > 0 for stage in recipe.stages)


def shares(recipe: Recipe) -> bool:
    """Whether rates are to follow what errors cost."""
    return any(stage.outlook.shares for stage in recipe.stages)


def batch_size(options: CalibrationOptions) -> int:
    """Sequences in one forward pass; never depends on the machine."""
    return max(1, TOKENS_PER_BATCH // options.sequence_length)


def gradient_batch(options: CalibrationOptions, samples: int) -> int:
    """Sequences in one of the passes back and forth that judge errors."""
    return max(1, min(batch_size(options) // 4, samples // GRADIENT_PASSES))


def activation_memory(recipe: Recipe) -> int:
    """Bytes of waiting activations kept in RAM; more go to disk."""
    return (recipe.max_memory or (16 << 30)) // 4


def peak_ram(recipe: Recipe, checkpoint: Checkpoint, targets: Sequence[Target]) -> int:
    """Upper estimate of the resident size in bytes."""
    largest = max((target.numel for target in targets), default=0)
    working = largest * 9 + (128 << 20)
    options = recipe.calibration
    if options is None or not needs_statistics(recipe):
        return IMPORTS + working
    walk = _walk(recipe, options, checkpoint, targets)
    return IMPORTS + working + max(walk, _gradients(options, checkpoint, targets) if shares(recipe) else 0)


def _walk(recipe: Recipe, options: CalibrationOptions, checkpoint: Checkpoint, targets: Sequence[Target]) -> int:
    width = torch.float32.itemsize
    sizes = _block_sizes(checkpoint)
    block = max(size for path, size in sizes.items() if path is not None)
    head = checkpoint.model.get_output_embeddings()
    unused = 0 if head is None or checkpoint.skeleton.tied_heads else head.weight.numel()  # the walk ends before it
    hessians = max(sum(shapes[0][1] ** 2 for shapes in inputs.values()) for inputs in _inputs(targets).values())
    widest = max(target.shape[1] for target in targets)
    largest = max(target.numel for target in targets)
    tokens = options.num_samples * options.sequence_length
    streams = 2 if aims(recipe) else 1
    waiting = _waiting(streams * tokens * _hidden(checkpoint) * width, streams * tokens * widest * width, recipe)
    wide = sum({target.shape[0] for target in targets}) + widest
    per_pass = min(tokens, batch_size(options) * options.sequence_length) * 2 * wide * width
    # Strips of the sums and of one batch are half of the squares; one whole Hessian and its factor; a few of a matrix.
    solving = hessians * width + widest**2 * 2 * width + largest * 4 * width
    if aims(recipe):
        solving += (2 * max(map(_drifts, _inputs(targets).values())) + widest**2) * width
    return (block + sizes[None] - unused) * width + solving + waiting + 2 * per_pass + WALKING


def _inputs(targets: Sequence[Target]) -> dict[str | None, dict[str, list[tuple[int, int]]]]:
    """Block -> its inputs, by the name of what reads them -> shapes of the matrices that do."""
    out: dict[str | None, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for target in targets:
        out[target.block][target.fuse or target.name].append(target.shape)
    return out


def _drifts(inputs: Mapping[str, Sequence[tuple[int, int]]]) -> int:
    """Elements of the drifts of a block: of outputs where one matrix reads an input and is wide, else of inputs."""
    return sum(min(shapes[0]) * shapes[0][1] if len(shapes) == 1 else shapes[0][1] ** 2 for shapes in inputs.values())


def _waiting(hidden: int, widest: int, recipe: Recipe) -> int:
    """Bytes of all batches between blocks or, where they may wait there, within one: see `Walk.observe`."""
    memory = activation_memory(recipe)
    within = held_within(hidden, widest)
    return within if within <= memory else 2 * min(hidden, memory)


def _gradients(options: CalibrationOptions, checkpoint: Checkpoint, targets: Sequence[Target]) -> int:
    """Of a pass forward and back: what stands outside blocks, a block and its gradients, activations and logits."""
    sizes = _block_sizes(checkpoint)
    block = max(size for path, size in sizes.items() if path is not None)
    outside = sizes[None] * (2 if any(target.block is None for target in targets) else 1)  # gradients of embeddings
    head = checkpoint.model.get_output_embeddings()
    logits = 0 if head is None else LOGITS * head.weight.shape[0]
    between = _hidden(checkpoint) * len(checkpoint.skeleton.blocks)  # kept for the way back
    outputs: dict[str | None, int] = defaultdict(int)
    for target in targets:
        outputs[target.block] += target.shape[0]
    tokens = gradient_batch(options, options.num_samples) * options.sequence_length
    each = logits + between + ACTIVATIONS * max(outputs.values())
    return torch.float32.itemsize * (outside + 2 * block + tokens * each) + 2 * WALKING


def _hidden(checkpoint: Checkpoint) -> int:
    return checkpoint.model.get_input_embeddings().weight.shape[1]


def _block_sizes(checkpoint: Checkpoint) -> dict[str | None, int]:
    """Parameters of each block, and of None: what stands outside."""
    sizes: dict[str | None, int] = defaultdict(int)
    for name, parameter in checkpoint.model.named_parameters():
        sizes[checkpoint.skeleton.block_of(name)] += parameter.numel()
    return sizes
