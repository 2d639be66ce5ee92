from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bpf import schema
from bpf.compiler import PROGRAMS

TOLD = {
    "CONFIG": schema.Config,
    "FLAG": schema.Flags,
    "CT": schema.ConntrackFlags,
    "EVENT": (schema.EventType, schema.EventFlags),
    "TRACE": schema.TracePoint,
    "MARK": schema.Mark,
}
"""The prefix of an enumeration's names in C."""

ELSEWHERE = re.compile("VERDICT_")
"""Numbers of C that are not the schema's."""


def from_c(expressions: dict[str, str], folder: Path, header: str = "common.h") -> dict[str, int]:
    """What the machine's C compiler makes of integer expressions over one of our headers."""
    lines = "".join(f'printf("{k} %lld\\n", (long long)({v}));' for k, v in expressions.items())
    source = folder / "ask.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{header}"\nint main(){{{lines}}}\n'
    )
    program = folder / "ask"
    subprocess.run(["gcc", f"-I{PROGRAMS}", "-o", str(program), str(source)], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return {key: int(value) for key, value in (x.split() for x in done.stdout.splitlines())}


def test_layouts_are_those_of_c(tmp_path: Path) -> None:
    wanted, asked = {}, {}
    for layout in schema.LAYOUTS:
        wanted[layout.name] = layout.size
        asked[layout.name] = f"sizeof(struct {layout.name})"
        for field, offset in layout.offsets().items():
            key = f"{layout.name}.{field}"
            wanted[key] = offset
            asked[key] = f"offsetof(struct {layout.name}, {field})"
    assert from_c(asked, tmp_path) == wanted


def test_every_structure_of_c_is_known() -> None:
    text = (PROGRAMS / "common.h").read_text()
    found = set(re.findall(r"^struct (\w+) \{", text, re.M))
    assert found == {layout.name for layout in schema.LAYOUTS} | {"addr"}


def test_numbers_are_those_of_c(tmp_path: Path) -> None:
    text = (PROGRAMS / "common.h").read_text()
    names = re.findall(r"\b([A-Z]+_[A-Z0-9_]+)(?: = \w+)?,? (?:/|})", text)
    names += re.findall(r"\b([A-Z]+_[A-Z0-9_]+)(?: = \w+)?,", text)
    names += re.findall(r"^#define (\w+) 0x", text, re.M)
    told = {f"REASON_{reason.name}": reason.number for reason in schema.REASONS}
    told |= {f"REASON_{name}": getattr(schema, name) for name in ("FORWARDED", "TO_PROXY")}
    told |= {f"MAP_{name.upper()}": number for number, name in schema.MAP_NUMBERS.items()}
    told |= {name: getattr(schema, name) for name in ("MARK_MASK", "LINK_SIDECAR")}
    told["REASON_EVENTS_LOST"] = schema.EVENTS_LOST
    for prefix, enums in TOLD.items():
        for enum in enums if isinstance(enums, tuple) else (enums,):
            told |= {f"{prefix}_{member.name}": int(member) for member in enum}
    asked = {name: name for name in names if not ELSEWHERE.match(name)}
    assert from_c(asked, tmp_path) == told


def test_ports_are_in_network_order() -> None:
    key = schema.POLICY_KEY.pack(96, 1, 2, 1, 6, 80)
    assert key[4:] == bytes([0, 0, 0, 1, 0, 0, 0, 2, 1, 6, 0, 80])
    assert schema.POLICY_KEY.unpack(key) == [96, 1, 2, 1, 6, 80]


def test_reasons_are_told_apart() -> None:
    assert len(schema.REASON_TEXTS) == len(schema.REASONS)
    assert len({reason.name for reason in schema.REASONS}) == len(schema.REASONS)


@pytest.mark.parametrize("name", [n for n in schema.MAPS if n != "config"])
def test_another_size_is_another_fingerprint(name: str) -> None:
    assert schema.fingerprint({name: 4}) != schema.fingerprint({})
    assert schema.fingerprint({name: schema.MAPS[name].size}) == schema.fingerprint({})
