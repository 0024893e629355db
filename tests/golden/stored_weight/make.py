"""Writes weights as other programs store them and what they decode to, for StoredWeightTest.

Needs torch, safetensors, compressed-tensors; for gptq.safetensors also numpy. Run: python make.py
- compressed.safetensors: "CASE/weight_packed", "CASE/weight_scale", ... by compressed-tensors' own compressors (nvfp4_modelopt:
  by torchao's encoder, in ModelOpt's names), and "CASE/expected", the weight as they decode it.
- gptq.safetensors: "CASE/qweight", ... with the metadata CASE: its quantization_config, and "CASE/expected". Packed and
  decoded here, by the formulas of GPTQModel's and AutoAWQ's kernels: their packages need a GPU's compiler.
"""
import json
import os

import numpy as np
import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS, COLS = 16, 64


def weight(seed):
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(seed)) * 0.1


def parameters(w, bits, groups, symmetric):
    """Scales that bf16 can hold, and zero points."""
    g = w.reshape(ROWS, groups, -1)
    low, high = g.amin(-1).clamp(max=0), g.amax(-1).clamp(min=0)
    least = -(2 ** (bits - 1))
    if symmetric:
        scale = (torch.maximum(-low, high) / (2 ** (bits - 1) - 0.5)).bfloat16().float()
        return scale, torch.zeros_like(scale, dtype=torch.int8)
    scale = ((high - low) / (2**bits - 1)).bfloat16().float()
    return scale, (least - torch.round(low / scale)).clamp(least, -least - 1).to(torch.int8)


def compressed():
    out = {}

    def case(name, compressor, args, tensors):
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        stored = compressor.compress(tensors, scheme)
        decoded = compressor.decompress(dict(stored), scheme)["weight"].float()
        for part, tensor in stored.items():
            out[f"{name}/{part}"] = tensor.contiguous()
        out[f"{name}/expected"] = decoded.contiguous()

    for i, (name, bits, group, symmetric) in enumerate([
            ("int4_group", 4, 32, True), ("int4_zero", 4, 16, False), ("int4_channel", 4, 0, True),
            ("int8_channel", 8, 0, True), ("int8_group", 8, 32, True), ("int8_zero", 8, 0, False)]):
        w = weight(i)
        scale, zero = parameters(w, bits, COLS // group if group else 1, symmetric)
        args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group else "channel"}
        if group:
            args["group_size"] = group
        compressor = PackedQuantizationCompressor if bits == 4 else NaiveQuantizationCompressor
        case(name, compressor, args, {"weight": w, "weight_scale": scale, "weight_zero_point": zero})
    w = weight(10)
    for name, strategy, scale in (("fp8_channel", "channel", (w.abs().amax(-1, keepdim=True) / 448)),
                                  ("fp8_tensor", "tensor", (w.abs().max() / 448).reshape(1))):
        case(name, NaiveQuantizationCompressor, {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy},
             {"weight": w, "weight_scale": scale})
    w = weight(11)
    total = (448 * 6 / w.abs().max()).reshape(1)
    scale = (total * w.reshape(ROWS, -1, 16).abs().amax(-1) / 6).clamp(max=448).to(torch.float8_e4m3fn).float()
    case("nvfp4_packed", NVFP4PackedCompressor,
         {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16},
         {"weight": w, "weight_scale": scale, "weight_global_scale": total})
    # Decoded in f32; the compressor rounds scales and values to bf16 on the way.
    codes = unpack_fp4_from_uint8(out["nvfp4_packed/weight_packed"], ROWS, COLS, dtype=torch.float32)
    factors = out["nvfp4_packed/weight_scale"].float() / total
    out["nvfp4_packed/expected"] = codes * factors.repeat_interleave(16, dim=1)
    total = per_tensor_amax_to_scale(w.abs().max())
    scales, codes = nvfp4_quantize(w, 16, total)
    out["nvfp4_modelopt/weight"] = codes
    out["nvfp4_modelopt/weight_scale"] = scales.reshape(ROWS, -1)
    out["nvfp4_modelopt/weight_scale_2"] = total.float().reshape(())
    out["nvfp4_modelopt/expected"] = NVFP4Tensor.to_nvfp4(w, per_tensor_scale=total).dequantize(torch.float32)
    save_file(out, os.path.join(HERE, "compressed.safetensors"))


def pack(values, bits):
    """Values of `bits` bits down the first axis into words: one little-endian stream a column."""
    count, columns = values.shape
    words = np.zeros((count * bits // 32, columns), np.uint64)
    for i in range(count):
        at, shift = divmod(i * bits, 32)
        words[at] |= (values[i].astype(np.uint64) << np.uint64(shift)) & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            words[at + 1] |= values[i].astype(np.uint64) >> np.uint64(32 - shift)
    return words.astype(np.uint32)


def gptq():
    out, metadata = {}, {}
    rows, cols = 32, 64
    cases = {
        "gptq4": dict(bits=4, group_size=32, desc_act=False, sym=False),
        "gptq4_sym": dict(bits=4, group_size=32, desc_act=False, sym=True),
        "gptq4_order": dict(bits=4, group_size=32, desc_act=True, sym=False),
        "gptq4_v2": dict(bits=4, group_size=-1, desc_act=False, sym=False, checkpoint_format="gptq_v2"),
        "gptq2": dict(bits=2, group_size=32, desc_act=False, sym=False),
        "gptq3": dict(bits=3, group_size=32, desc_act=True, sym=True),
        "gptq8": dict(bits=8, group_size=32, desc_act=False, sym=False),
        "awq": dict(bits=4, group_size=32, zero_point=True, version="gemm", quant_method="awq"),
    }
    random = np.random.default_rng(5)
    for name, config in cases.items():
        bits, awq = config["bits"], name == "awq"
        group = cols if config["group_size"] < 0 else config["group_size"]
        groups = cols // group
        config.setdefault("quant_method", "gptq")
        codes = random.integers(0, 2**bits, (cols, rows))
        zeros = np.full((groups, rows), 2 ** (bits - 1))
        if not config.get("sym", False):
            zeros = random.integers(0 if awq or "v2" in name else 1, 2**bits, (groups, rows))
        scales = (random.random((groups, rows)) * 0.02 + 0.001).astype(np.float16)
        of = np.arange(cols) // group
        if config.get("desc_act", False):
            of = random.permutation(of)
        if awq:
            order = [0, 2, 4, 6, 1, 3, 5, 7]

            def words(v):
                v = v.reshape(v.shape[0], -1, 8)[:, :, order].astype(np.uint64)
                return (v << (np.arange(8, dtype=np.uint64) * 4)).sum(-1).astype(np.uint32)

            qweight, qzeros = words(codes), words(zeros)
        else:
            qweight, qzeros = pack(codes, bits), pack(zeros.T.copy(), bits).T.copy()
            if "v2" not in name and bits != 3:
                ones = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}[bits]
                qzeros = (qzeros.astype(np.int64) - ones).astype(np.uint32)
            elif bits == 3:
                qzeros = pack(((zeros - 1) % 8).T.copy(), 3).T.copy()
            out[f"{name}/g_idx"] = torch.from_numpy(of.astype(np.int32))
        expected = scales[of].astype(np.float32) * (codes - zeros[of]).astype(np.float32)
        out[f"{name}/qweight"] = torch.from_numpy(qweight.view(np.int32).copy())
        out[f"{name}/qzeros"] = torch.from_numpy(np.ascontiguousarray(qzeros).view(np.int32).copy())
        out[f"{name}/scales"] = torch.from_numpy(scales)
        out[f"{name}/expected"] = torch.from_numpy(np.ascontiguousarray(expected.T))
        metadata[name] = json.dumps(config)
    save_file(out, os.path.join(HERE, "gptq.safetensors"), metadata=metadata)


if __name__ == "__main__":
    compressed()
    gptq()
