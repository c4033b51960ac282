"""Quantize one Llama with llama.cpp's own quantizer and an importance matrix. Runs where llama-cpp-python and gguf are.

Three things that llama.cpp leaves to tools which the Python package does not bring are done here. The GGUF file of the
original is written with gguf-py: float32, rows of query and key in llama.cpp's order, no tokenizer. The importance
matrix is what llama-imatrix computes, the mean square of each input column over the calibration tokens, taken from
transformers' forward in float32; like there the embedding has none. The quantizer is called through its C interface,
which takes that matrix as it is. Decoding is gguf-py's, and is checked against llama.cpp, which writes its own file in
float32 again. Its own forward rounds activations to 8 bits, which the judge does not; keys and values stay in float32.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.dense import CHECKED, calibration, original, read_job, write
from safetensors.numpy import load_file, save_file

MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """What llama.cpp calls a weight of a Llama. Raises KeyError for what no Llama has."""
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight"
    _, _, number, rest = stem.split(".", 3)
    return f"blk.{number}.{ {**MATRICES, **NORMS}[rest] }.weight"


def rotary_order(rows: int, heads: int) -> torch.Tensor:
    """Row of the original for each row of llama.cpp, which rotates neighbours where transformers rotates halves."""
    return torch.arange(rows).view(heads, 2, rows // heads // 2).transpose(1, 2).reshape(-1)


def heads_of(name: str, config: Any) -> int | None:
    """Heads of a matrix whose rows llama.cpp reorders."""
    by_part = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return by_part.get(name.split(".")[-2])


def write_gguf(tensors: dict[str, torch.Tensor], config: Any, file: Path) -> None:
    gguf: Any = import_module("gguf")  # by name: not installed where types are checked
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(0)
    for name, tensor in tensors.items():
        heads = heads_of(name, config)
        rows = tensor if heads is None else tensor[rotary_order(len(tensor), heads)]
        writer.add_tensor(gguf_name(name), rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def importance(model: Any, ids: list[list[int]]) -> dict[str, np.ndarray[Any, Any]]:
    """GGUF name of each block matrix -> mean square of each input column, float32 `[in_features]`."""
    sums: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            key = gguf_name(f"{name}.weight")
            sums[key] = torch.zeros(module.in_features, dtype=torch.float64)
            hooks.append(module.register_forward_pre_hook(_adding(sums[key])))
    with torch.no_grad():
        for row in ids:
            model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    tokens = sum(map(len, ids))
    return {key: (total / tokens).float().numpy() for key, total in sums.items()}


def stored_importance(job: dict[str, Any], ids: list[list[int]]) -> dict[str, np.ndarray[Any, Any]]:
    """The importance matrix, computed once for the same model and tokens: it is kept beside the tokens."""
    from transformers import AutoModelForCausalLM

    digest = hashlib.sha256(json.dumps(ids).encode())
    for file in sorted(Path(job["model"]).glob("*.safetensors")):
        digest.update(file.read_bytes())
    kept = Path(job["tokens"]).with_name(f"importance-{digest.hexdigest()[:16]}.safetensors")
    if not kept.exists():
        found = importance(AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32), ids)
        fresh = kept.with_suffix(f".{os.getpid()}")
        save_file(found, fresh)
        fresh.replace(kept)
    return load_file(kept)


def _adding(total: torch.Tensor) -> Any:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        total.add_(inputs[0].double().square().flatten(0, -2).sum(0))

    return hook


def quantize(cpp: Any, source: Path, out: Path, job: dict[str, Any], matrix: dict[str, np.ndarray[Any, Any]]) -> None:
    """One file to another. Raises RuntimeError when llama.cpp refuses; its reason is in what it printed."""
    params = cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = getattr(cpp, f"LLAMA_FTYPE_MOSTLY_{job['type']}")
    if job["embedding"]:  # the output's type as well: with a tied head llama.cpp asks for that one
        gguf: Any = import_module("gguf")
        params.token_embedding_type = params.output_tensor_type = gguf.GGMLQuantizationType[job["embedding"]].value
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = (cpp.llama_model_imatrix_data * (len(matrix) + 1))()  # the last has no name, and ends the list
    for entry, (name, values) in zip(entries, matrix.items(), strict=False):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data_as(pointer), len(values)
    params.imatrix = entries
    if cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        raise RuntimeError("Error: llama_model_quantize refused")


def check_decoding(cpp: Any, file: Path, plain: Path) -> None:
    """Have llama.cpp write `file` as float32 to `plain`. Raises RuntimeError where gguf-py decodes to anything else."""
    gguf: Any = import_module("gguf")
    params = cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = 1, cpp.LLAMA_FTYPE_ALL_F32, True
    params.token_embedding_type = params.output_tensor_type = cpp.GGML_TYPE_F32
    if cpp.llama_model_quantize(str(file).encode(), str(plain).encode(), ctypes.byref(params)):
        raise RuntimeError("Error: llama_model_quantize refused to go back to float32")
    theirs = {t.name: t.data for t in gguf.GGUFReader(str(plain)).tensors}
    for tensor in gguf.GGUFReader(str(file)).tensors:
        mine = gguf.dequantize(tensor.data, tensor.tensor_type)
        if not np.array_equal(mine, theirs[tensor.name].reshape(mine.shape)):
            far = np.abs(mine - theirs[tensor.name].reshape(mine.shape)).max()
            raise RuntimeError(f"Error: {tensor.name}: gguf-py and llama.cpp decode it differently, by {far}")


def decoded(file: Path, names: list[str], config: Any) -> tuple[dict[str, torch.Tensor], dict[str, int], str]:
    """Weights by their name in the original, sizes, and the types of its matrices."""
    gguf: Any = import_module("gguf")
    reader = gguf.GGUFReader(str(file))
    found = {tensor.name: tensor for tensor in reader.tensors}
    weights = {}
    for name in names:
        tensor = found[gguf_name(name)]
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        heads = heads_of(name, config)
        if heads is not None:
            values = values[torch.argsort(rotary_order(len(values), heads))]
        weights[name] = values
    blocks = [t for t in reader.tensors if t.name.startswith("blk.") and "norm" not in t.name]
    outside = [t for t in reader.tensors if t.name in ("token_embd.weight", "output.weight")]
    sizes = {
        "weight_bytes": file.stat().st_size,
        "block_bytes": sum(int(t.n_bytes) for t in blocks),
        "embedding_bytes": sum(int(t.n_bytes) for t in outside),
    }
    return weights, sizes, ", ".join(sorted({t.tensor_type.name for t in [*blocks, *outside]}))


def own_forward(cpp: Any, file: Path, ids: list[int]) -> torch.Tensor:
    """Logits `[len(ids), vocabulary]` of llama.cpp, float32. Raises RuntimeError when it cannot run the file."""
    model = cpp.llama_model_load_from_file(str(file).encode(), cpp.llama_model_default_params())
    settings = cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = len(ids)
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = cpp.GGML_TYPE_F32
    context = cpp.llama_init_from_model(model, settings)
    batch = cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
        batch.seq_id[place][0], batch.logits[place] = 0, 1
    if cpp.llama_decode(context, batch):
        raise RuntimeError("Error: llama_decode failed")
    width = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    values = np.ctypeslib.as_array(cpp.llama_get_logits(context), shape=(len(ids), width))
    return torch.from_numpy(values.copy())


def main() -> None:
    job = read_job()
    from transformers import AutoConfig

    cpp: Any = import_module("llama_cpp")
    config = AutoConfig.from_pretrained(job["model"])
    folder = Path(job["out"])
    folder.mkdir(parents=True, exist_ok=True)
    source, out = folder / "original.gguf", folder / "quantized.gguf"
    tensors, ids = original(job), calibration(job)
    write_gguf(tensors, config, source)
    cpp.llama_backend_init()
    quantize(cpp, source, out, job, stored_importance(job, ids))
    check_decoding(cpp, out, source)  # the original is not needed any more
    source.unlink()
    weights, sizes, types = decoded(out, list(tensors), config)
    logits = own_forward(cpp, out, ids[0][:CHECKED])
    write(job, weights, logits, sizes, ("llama-cpp-python", "gguf", "torch"), types)


if __name__ == "__main__":
    main()
