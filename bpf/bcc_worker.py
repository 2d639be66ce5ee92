"""Run as a program of its own: compiles one source with bcc, and prints what came of it.

So what libbcc writes to its standard error, the memory of its compiler, and its end if it
should crash, stay out of the agent. Uses only Python's own library: it runs isolated from the
environment it is started in. A request is one JSON object on standard input::

    {"bcc": folder of the package, "text": source, "flags": [compiler flags]}

The answer, on standard output, has for each function its instructions (base64) and, for those
that load a map, by their number: the name that bcc has for the map, or what else stands there.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

LOAD_64 = 0x18
PSEUDO_MAP_FD = 1


def load_bcc(folder: str) -> Any:
    """Debian's package by its path: nothing else of that folder becomes importable, and what
    is called `bcc` elsewhere is not meant."""
    path = Path(folder)
    spec = importlib.util.spec_from_file_location(
        "bcc", path / "__init__.py", submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return module


def relocations(code: bytes, tables: dict[int, str]) -> dict[int, str | int]:
    """The instructions that load a map, by their number."""
    found: dict[int, str | int] = {}
    for number in range(len(code) // 8):
        instruction = code[number * 8 : number * 8 + 8]
        if instruction[0] == LOAD_64 and instruction[1] >> 4 == PSEUDO_MAP_FD:
            told = int.from_bytes(instruction[4:8], sys.byteorder)
            found[number] = tables.get(told, told)
    return found


def compiled(request: dict[str, Any]) -> dict[str, Any]:
    """Each function's instructions and relocations."""
    bcc = load_bcc(request["bcc"])
    module = bcc.BPF(text=request["text"], cflags=request["flags"])
    lib = bcc.lib
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_name.restype = ctypes.c_char_p
    names = [lib.bpf_table_name(module.module, n) for n in range(lib.bpf_num_tables(module.module))]
    tables = {lib.bpf_table_fd(module.module, name): name.decode() for name in names}
    functions = {}
    for n in range(lib.bpf_num_functions(module.module)):
        name = lib.bpf_function_name(module.module, n)
        code = module.dump_func(name)
        functions[name.decode()] = {
            "code": base64.b64encode(code).decode(),
            "maps": relocations(code, tables),
        }
    return functions


if __name__ == "__main__":
    try:
        print(json.dumps(compiled(json.load(sys.stdin))))
    except Exception as error:
        # The compiler has written its messages; a traceback would tell nothing more.
        sys.exit(str(error))
