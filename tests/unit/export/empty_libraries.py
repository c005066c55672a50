"""Shared objects with the entry points that TensorRT's Python bindings name, and nothing behind them.

The bindings are on PyPI, the libraries that they are linked to are gigabytes and need a GPU. With these in their place
the bindings import: every class, flag and signature is there to check code against, and nothing can be built.
"""

import struct
from collections.abc import Sequence

LIBRARIES = ("libnvinfer.so.11", "libnvonnxparser.so.11", "libnvinfer_plugin.so.11")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
HEADER, SEGMENT, DYNAMIC, SYMBOL = 64, 56, 16, 24  # sizes of ELF's structures in bytes
NOWHERE = 64  # an address inside the file: the loader takes 0 for "not defined here"
LOAD, DYNAMIC_SEGMENT, READ_WRITE = 1, 2, 6  # PT_LOAD, PT_DYNAMIC, PF_R | PF_W


def empty_library(name: str, symbols: Sequence[str] = ENTRY_POINTS) -> bytes:
    """A shared object for x86-64 (ELF specification, System V ABI) that defines `symbols`; calling one is fatal."""
    strings, places = b"\0", {}
    for text in (name, *symbols):
        places[text] = len(strings)
        strings += text.encode() + b"\0"
    table = bytes(SYMBOL) + b"".join(struct.pack("<IBBHQQ", places[each], 0x12, 0, 1, NOWHERE, 0) for each in symbols)
    count = len(symbols) + 1
    # One bucket that chains every symbol: 1 -> 2 -> ... -> 0.
    chain = [0, *range(2, count), 0]
    hashes = struct.pack(f"<{3 + count}I", 1, count, 1, *chain)
    dynamic_at = HEADER + 2 * SEGMENT
    table_at = dynamic_at + 6 * DYNAMIC
    hashes_at = table_at + len(table)
    strings_at = hashes_at + len(hashes)
    size = strings_at + len(strings)
    # DT_SONAME, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_NULL
    dynamic = struct.pack("<12Q", 14, places[name], 4, hashes_at, 5, strings_at, 6, table_at, 10, len(strings), 0, 0)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bit, little-endian
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, HEADER, 0, 0, HEADER, SEGMENT, 2, 0, 0, 0)
    segments = struct.pack("<IIQQQQQQ", LOAD, READ_WRITE, 0, 0, 0, size, size, 4096)
    there = (dynamic_at,) * 3
    segments += struct.pack("<IIQQQQQQ", DYNAMIC_SEGMENT, READ_WRITE, *there, len(dynamic), len(dynamic), 8)
    return header + segments + dynamic + table + hashes + strings
