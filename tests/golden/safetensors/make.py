"""Writes small files by the safetensors library and what it says of broken ones, for TensorFileTest.

Needs torch and safetensors. Run: python make.py
- empty, scalar, mixed .safetensors: files the writer must reproduce byte for byte.
- headers.txt: one hexadecimal file a line after "1" or "0", whether the library reads it.
- flips.txt: for every byte of mixed.safetensors and every bit of it, "1" or "0" when that bit is flipped.
"""
import os
import struct

import torch
from safetensors import deserialize
from safetensors.torch import save

HERE = os.path.dirname(os.path.abspath(__file__))


def accepts(data):
    try:
        deserialize(bytes(data))
        return "1"
    except Exception:
        return "0"


def file(header, data=b"", length=None):
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape="[1]", offsets="[0,4]", rest=""):
    return '{"dtype":"%s","shape":%s,"data_offsets":%s%s}' % (dtype, shape, offsets, rest)


def headers():
    four, eight = b"\0" * 4, b"\0" * 8
    one = '{"a":%s}' % entry()
    yield file(one, four)
    yield file("{}")
    yield file("")
    yield b""
    yield b"\0" * 7
    yield file("   \n\t " + one + "  \r\n ", four)
    yield file(one + "\0", four)
    yield file(one + "x", four)
    yield file(one + "}", four)
    yield file("\ufeff" + one, four)
    yield file("[]")
    yield file("null")
    yield file("{", b"")
    yield file(one, four, len(one) + 5)
    yield file(one, four, 100000001)
    yield file(one, four, 2**63 + 1)
    yield file(one, b"\0" * 3)
    yield file(one, b"\0" * 5)
    yield file(b'{"\xff":%s}' % entry().encode(), four)
    for text in (
        entry("f32"), entry("F33"), entry("F32", "[-1]"), entry("F32", "[1.0]"), entry("F32", "[1e0]"),
        entry("F32", '["1"]'), entry("F32", "null"), entry("F32", "[[1]]"), entry("F32", "[]"), entry("F32", "[1,1,1]"),
        entry("F32", "[2]"), entry("F32", "[4294967296,4294967296]"), entry("F32", "[18446744073709551615]"),
        entry("F32", "[18446744073709551616]"), entry("F32", "[9223372036854775808,0]"), entry("BF16", "[2]"),
        entry("F16", "[1,2]"), entry("U8", "[4]"), entry("BOOL", "[2,2]"), entry("F4", "[8]"), entry("F4", "[7]"),
        entry("F6_E2M3", "[4]"), entry("F8_E4M3", "[4]"), entry("F8_E8M0", "[4]"), entry("F8_E5M2FNUZ", "[4]"),
        entry("F32", "[1]", "[4,0]"), entry("F32", "[1]", "[4,8]"), entry("F32", "[1]", "[0]"),
        entry("F32", "[1]", "[0,4,8]"), entry("F32", "[1]", "[0.0,4]"), entry("F32", "[1]", "[-0,4]"),
        entry("F32", "[1]", "null"), entry(rest=',"extra":{"x":[1,2]}'), '{"dtype":"F32","shape":[1]}',
        '{"shape":[1],"data_offsets":[0,4]}', '{"dtype":"F32","data_offsets":[0,4]}', "null", "4", "{}",
        entry("F32", "[1]", "[18446744073709551612,18446744073709551616]"),
    ):
        yield file('{"a":%s}' % text, four)
    for text in (
        '"a":%s,"b":%s' % (entry(), entry(offsets="[4,8]")),
        '"b":%s,"a":%s' % (entry(offsets="[4,8]"), entry()),
        '"a":%s,"b":%s' % (entry(), entry()),
        '"a":%s,"b":%s' % (entry(), entry(offsets="[5,9]")),
        '"a":%s,"b":%s' % (entry("F64", "[1]", "[0,8]"), entry(offsets="[4,8]")),
        '"a":%s,"a":%s' % (entry(), entry("F64", "[1]", "[0,8]")),
        '"a":%s,"a":%s' % (entry("F64", "[1]", "[0,8]"), entry()),
        '"a":%s,"b":%s' % (entry("U8", "[1]", "[0,1]"), entry("U8", "[7]", "[1,8]")),
        '"a":%s,"b":%s' % (entry("U8", "[3]", "[0,3]"), entry("U8", "[5]", "[3,8]")),
        '"a":%s,"z":%s' % (entry("F64", "[1]", "[0,8]"), entry("F32", "[0]", "[8,8]")),
        '"a":%s,"z":%s' % (entry("F64", "[1]", "[0,8]"), entry("F32", "[3,0]", "[0,0]")),
        '"a":%s,"z":%s' % (entry("F64", "[1]", "[0,8]"), entry("F32", "[0]", "[4,4]")),
        '"__metadata__":{"k":"v"},"a":%s' % entry("F64", "[1]", "[0,8]"),
        '"__metadata__":null,"a":%s' % entry("F64", "[1]", "[0,8]"),
        '"__metadata__":{"k":1},"a":%s' % entry("F64", "[1]", "[0,8]"),
        '"__metadata__":{"k":null},"a":%s' % entry("F64", "[1]", "[0,8]"),
        '"__metadata__":[],"a":%s' % entry("F64", "[1]", "[0,8]"),
        '"__metadata__":"x","a":%s' % entry("F64", "[1]", "[0,8]"),
        '"a":%s,' % entry("F64", "[1]", "[0,8]"),
        '"\\u00e9\\n":%s' % entry("F64", "[1]", "[0,8]"),
        '"a":%s' % entry("F64", "[1]", "[0,8]", ',"x":' + "[" * 200 + "]" * 200),
        '"a":%s' % entry("F64", "[1]", "[0,8]", ',"x":' + "[" * 100 + "]" * 100),
    ):
        yield file("{%s}" % text, eight)


def main():
    mixed = {
        "layers.0.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "layers.0.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "half": torch.tensor([[0.1], [65504.0], [-0.0]], dtype=torch.float16),
        "codes": torch.tensor([1, 2, 255], dtype=torch.uint8),
        "ids": torch.tensor([-1, 2**40], dtype=torch.int64),
        "double": torch.tensor(0.1, dtype=torch.float64),
        "none": torch.zeros([0, 4], dtype=torch.float32),
        "flag": torch.tensor([True, False, True]),
        "name \"q\" \\ \n\x01\x7f é 中": torch.tensor([7], dtype=torch.int32),
        "f8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    }
    files = {"empty": save({}), "scalar": save({"s": torch.tensor(2.5)}), "mixed": save(mixed, {"format": "pt"})}
    for name, data in files.items():
        with open(os.path.join(HERE, name + ".safetensors"), "wb") as out:
            out.write(data)
    with open(os.path.join(HERE, "headers.txt"), "w") as out:
        for data in headers():
            out.write(f"{accepts(data)} {data.hex()}\n")
    with open(os.path.join(HERE, "flips.txt"), "w") as out:
        data = bytearray(files["mixed"])
        for i in range(len(data)):
            for bit in range(8):
                data[i] ^= 1 << bit
                out.write(accepts(data))
                data[i] ^= 1 << bit
            out.write("\n")


main()
