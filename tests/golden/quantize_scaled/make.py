"""Writes expected.txt: CRC-32 of what torchao and PyTorch make of a million values a kind, for QuantizeScaledTest.

Needs torch and torchao. Run: python make.py
Lines, with hexadecimal checksums:
  scheme KIND NAME INPUT CODES SCALES DECODED   weights [1367, 768]; codes a byte each, scales f32 (nvfp4: E4M3 codes)
  tokens KIND NAME CODES SCALES ZEROS           activations to int8, a row each; zeros int32
  cast NAME INPUT CODES                         patterns() to 8-bit floats
  table NAME VALUES                             the 256 values as f32, NaN as 7fc00000
"""
import os
import sys
import zlib

import numpy as np
import torch
from torchao.prototype.mx_formats.kernels import unpack_uint4
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import (
    MappingType, _choose_scale_float8, _dequantize_affine_float8, _quantize_affine_float8, choose_qparams_affine,
    quantize_affine)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "quantize_blocks"))
from make import crc, values  # noqa: E402

ROWS, COLS = 1367, 768
KINDS = 7
INTS = {
    "int8": (torch.int8, PerAxis(0)),
    "int4": (torch.int4, PerAxis(0)),
    "int4_g32": (torch.int4, PerGroup(32)),
    "int4_g64": (torch.int4, PerGroup(64)),
    "int4_g128": (torch.int4, PerGroup(128)),
}
FLOATS = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def ints(x, dtype, granularity):
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight = torch.nn.Parameter(x.clone())
    quantize_(linear, IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity))
    w = linear.weight
    assert (w.zero_point == 0).all()
    return w.qdata.numpy(), w.scale.numpy(), w.dequantize().detach().numpy()


def floats(x, dtype):
    scale = _choose_scale_float8(x, (1, COLS), dtype)
    codes = _quantize_affine_float8(x, scale, dtype)
    return codes.view(torch.uint8).numpy(), scale.numpy(), _dequantize_affine_float8(codes, scale).numpy()


def nvfp4(x):
    scale = per_tensor_amax_to_scale(x.abs().max())
    scales, packed = nvfp4_quantize(x, 16, scale)
    decoded = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(torch.float32)
    return unpack_uint4(packed).numpy(), scales.view(torch.uint8).numpy(), decoded.numpy()


def tokens(x, mapping):
    scale, zero = choose_qparams_affine(
        x, mapping, (1, COLS), torch.int8, -128, 127, scale_dtype=torch.float32, zero_point_dtype=torch.int32)
    codes = quantize_affine(x, (1, COLS), scale, zero, torch.int8, -128, 127)
    return codes.numpy(), scale.numpy(), zero.numpy()


def patterns():
    """Bit patterns 65521 apart, then the values of the small types and what lies at and next to their midpoints."""
    parts = [(np.arange(65552, dtype=np.uint64) * 65521 & 0xFFFFFFFF).astype(np.uint32).view(np.float32)]
    for dtype in FLOATS.values():
        table = torch.arange(128, dtype=torch.uint8).view(dtype).float().numpy()
        table = table[np.isfinite(table)]
        middle = (table[1:] + table[:-1]) / 2
        for part in (table, middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(0))):
            parts += [part, -part]
    far = np.float32([464, 480, 61439, 61440, 61441, 65536, np.inf])
    values = np.concatenate(parts + [far, -far])
    return values[~np.isnan(values)]


def main():
    lines = []
    for kind in range(KINDS):
        x = torch.from_numpy(np.ascontiguousarray(values(kind))).reshape(ROWS, COLS)
        given = crc(x.numpy())
        schemes = {name: lambda c=c: ints(x, *c) for name, c in INTS.items()}
        schemes.update({name: lambda d=d: floats(x, d) for name, d in FLOATS.items()})
        schemes["nvfp4"] = lambda: nvfp4(x)
        for name, run in schemes.items():
            if kind == 4 and name == "nvfp4":
                continue  # 1 / s_t is infinite
            parts = run()
            if np.isnan(parts[2]).any():
                print(f"kind {kind} {name}: NaN, left out")
                continue
            lines.append(f"scheme {kind} {name} {given:08x} " + " ".join(f"{crc(p):08x}" for p in parts) + "\n")
        for name, mapping in (("symmetric", MappingType.SYMMETRIC), ("asymmetric", MappingType.ASYMMETRIC)):
            lines.append(f"tokens {kind} {name} " + " ".join(f"{crc(p):08x}" for p in tokens(x, mapping)) + "\n")
    x = torch.from_numpy(patterns())
    for name, dtype in FLOATS.items():
        lines.append(f"cast {name} {crc(x.numpy()):08x} {crc(x.to(dtype).view(torch.uint8).numpy()):08x}\n")
        table = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        table[table.isnan()] = float("nan")
        lines.append(f"table {name} {crc(table.numpy()):08x}\n")
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "expected.txt")
    with open(path, "w") as out:
        out.writelines(lines)


if __name__ == "__main__":
    main()
