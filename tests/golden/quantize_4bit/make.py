"""Writes expected.txt: CRC-32 of what bitsandbytes (CPU) makes of ten million values, for Quantize4BitTest.

Needs torch, numpy, bitsandbytes. Run: python make.py
Columns: kind format block_size input codes absmax decoded offset_bits nested_codes nested_absmax decoded_nested
torch_mean. All but kind, format, block_size and torch_mean are hexadecimal. The offset is torch.mean on one thread, or
where its sum overflows (torch_mean 0) the mean in double.
"""
import os
import zlib

import bitsandbytes.functional as F
import numpy as np
import torch
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

COUNT = 1500037  # odd, and not a multiple of any block size
KINDS = 7
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def mix(x):
    x = x.astype(np.uint64) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint64(shift)
        x = (x * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return (x ^ (x >> np.uint64(16))).astype(np.uint32)


def bell(h):
    """A sum of four bytes of h, centred, times 2^-13: about normal, exact."""
    total = (h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24)
    return ((total.astype(np.int32) - 510).astype(np.float32) * np.float32(2.0**-13)).astype(np.float32)


def thresholds():
    bounds = [_get_4bit_quantize_bounds(t, torch.device("cpu"))[0].numpy() for t in ("nf4", "fp4")]
    return np.concatenate(bounds).view(np.uint32)  # 30


def values(kind):
    i = np.arange(COUNT, dtype=np.uint64)
    h = mix(i + np.uint64(kind * 0x9E3779B1))
    if kind == 0:  # about normal
        return bell(h)
    if kind == 1:  # any finite bit pattern: huge, tiny, denormal
        return np.where((h & 0x7F800000) == 0x7F800000, h ^ 0x40000000, h).astype(np.uint32).view(np.float32)
    if kind == 2:  # a quarter of all runs of 64 are +0 or -0
        zero = mix(i >> np.uint64(6)) % 4 == 0
        return np.where(zero, (h & 0x80000000).view(np.float32), bell(h)).astype(np.float32)
    if kind == 3:  # on the thresholds of both formats and one unit in the last place beside them
        bits = thresholds()[h % 30] + (h >> 8) % 3 - 1
        bits = np.where(i % 32 == 5, 0x3F800000, bits)
        bits = np.where(bits == 0xFFFFFFFF, 0, bits)  # one below +0
        scale = np.float32(2.0) ** ((i >> np.uint64(12)) % 60).astype(np.float32) * np.float32(2.0**-30)
        return bits.astype(np.uint32).view(np.float32) * scale
    if kind == 4:  # denormals and the smallest normals
        return ((h & 0x80000000) | (h & 0xFFFFFF) >> (mix(i >> np.uint64(6)) % 24)).astype(np.uint32).view(np.float32)
    if kind == 5:  # about normal, bf16
        return (bell(h).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return h.view(np.int32).astype(np.float32) * np.float32(2.0**-40)  # uniform, full mantissa


def crc(array):
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def main():
    torch.set_num_threads(1)
    lines = []
    for kind in range(KINDS):
        array = values(kind)
        assert np.isfinite(array).all()
        weight = torch.from_numpy(array.copy())
        for block_size in BLOCK_SIZES:
            for quant_type in ("nf4", "fp4"):
                codes, state = F.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
                absmax = state.absmax
                decoded = F.dequantize_4bit(codes, state).numpy()
                offset = np.float32(absmax.mean().item())
                same = int(np.isfinite(offset))
                if not same:
                    offset = np.float32(absmax.double().mean().item())
                nested, nested_state = F.quantize_blockwise(absmax - torch.tensor(offset), blocksize=256)
                rebuilt = F.dequantize_blockwise(nested, nested_state) + torch.tensor(offset)
                state.absmax = rebuilt
                decoded_nested = F.dequantize_4bit(codes, state).numpy()
                fields = [crc(array), crc(codes.numpy()), crc(absmax.numpy()), crc(decoded), int(offset.view(np.uint32)),
                          crc(nested.numpy()), crc(nested_state.absmax.numpy()), crc(decoded_nested)]
                lines.append(f"{kind} {quant_type} {block_size} " + " ".join(f"{x:08x}" for x in fields) + f" {same}\n")
        print("kind", kind, flush=True)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "expected.txt")
    with open(path, "w") as out:
        out.writelines(lines)


main()
