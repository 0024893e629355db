"""Writes expected.txt: CRC-32 of what ggml makes of a million values a kind, for QuantizeBlocksTest.

Needs numpy and llama-cpp-python, whose libggml-base holds the reference encoders and decoders. Run: python make.py [libggml-base.so]
Columns: "encode" kind format input encoded decoded, and "decode" format input decoded for blocks of any bytes (their
half-precision scales finite). All but kind and format are hexadecimal.
"""
import ctypes
import glob
import os
import sys
import zlib

import numpy as np

COUNT = 256 * 4101
KINDS = 7
BLOCKS = 4099  # of any bytes
# name: (ggml's name, values, bytes, where half-precision scales lie)
FORMATS = {
    "q4_0": ("q4_0", 32, 18, (0,)),
    "q4_1": ("q4_1", 32, 20, (0, 2)),
    "q5_0": ("q5_0", 32, 22, (0,)),
    "q5_1": ("q5_1", 32, 24, (0, 2)),
    "q8_0": ("q8_0", 32, 34, (0,)),
    "q4_k": ("q4_K", 256, 144, (0, 2)),
    "q5_k": ("q5_K", 256, 176, (0, 2)),
    "q6_k": ("q6_K", 256, 210, (208,)),
    "tq1_0": ("tq1_0", 256, 54, (52,)),
    "tq2_0": ("tq2_0", 256, 66, (64,)),
    "mxfp4": ("mxfp4", 32, 17, ()),
    "nvfp4": ("nvfp4", 64, 36, ()),
}


def library():
    if len(sys.argv) > 1:
        return ctypes.CDLL(sys.argv[1])
    import llama_cpp

    folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
    return ctypes.CDLL(glob.glob(os.path.join(folder, "libggml-base.so*"))[0])


def encode(lib, name, values):
    ggml, block, size, _ = FORMATS[name]
    out = np.zeros(values.size // block * size, np.uint8)
    getattr(lib, f"quantize_row_{ggml}_ref")(
        values.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(values.size))
    return out


def decode(lib, name, data):
    ggml, block, size, _ = FORMATS[name]
    out = np.zeros(data.size // size * block, np.float32)
    getattr(lib, f"dequantize_row_{ggml}")(
        data.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(out.size))
    return out


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


def values(kind):
    i = np.arange(COUNT, dtype=np.uint64)
    h = mix(i + np.uint64(kind * 0x9E3779B1))
    if kind == 0:  # about normal
        return bell(h)
    if kind == 1:  # any finite bit pattern of one of 64 exponents a run of 32: huge and tiny
        exponent = 32 + mix(i >> np.uint64(5)) % 96 + (h >> 24) % 8
        return (h & 0x807FFFFF | exponent.astype(np.uint32) << 23).astype(np.uint32).view(np.float32)
    if kind == 2:  # a quarter of all runs of 16 are +0 or -0
        zero = mix(i >> np.uint64(4)) % 4 == 0
        return np.where(zero, (h & 0x80000000).view(np.float32), bell(h)).astype(np.float32)
    if kind == 3:  # halves, whose codes are ties; runs of 32 share a power of two
        power = np.float32(2.0) ** (mix(i >> np.uint64(5)) % 20).astype(np.float32) * np.float32(2.0**-15)
        return ((h % 61).astype(np.int32) - 30).astype(np.float32) * power
    if kind == 4:  # denormals and the smallest normals
        return ((h & 0x80000000) | (h & 0xFFFFFF) >> (mix(i >> np.uint64(6)) % 24)).astype(np.uint32).view(np.float32)
    if kind == 5:  # about normal, bf16
        return (bell(h).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return h.view(np.int32).astype(np.float32) * np.float32(2.0**-40)  # uniform, full mantissa


def any_blocks(name):
    _, _, size, scales = FORMATS[name]
    data = (mix(np.arange(BLOCKS * size, dtype=np.uint64)) >> 7).astype(np.uint8).reshape(BLOCKS, size)
    for at in scales:
        data[:, at + 1] &= 0xBF  # below 2: no infinity, no NaN
    return np.ascontiguousarray(data.reshape(-1))


def crc(array):
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def main():
    lib = library()
    lines = []
    for kind in range(KINDS):
        array = np.ascontiguousarray(values(kind))
        assert np.isfinite(array).all()
        for name in FORMATS:
            if kind == 4 and name == "mxfp4":
                continue  # ggml's exponent wraps around below 2^-125
            blocks = encode(lib, name, array)
            lines.append(f"encode {kind} {name} {crc(array):08x} {crc(blocks):08x} {crc(decode(lib, name, blocks)):08x}\n")
    for name in FORMATS:
        data = any_blocks(name)
        lines.append(f"decode {name} {crc(data):08x} {crc(decode(lib, name, data)):08x}\n")
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "expected.txt")
    with open(path, "w") as out:
        out.writelines(lines)


if __name__ == "__main__":
    main()
