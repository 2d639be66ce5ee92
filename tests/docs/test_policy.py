"""docs/policy.md: its endpoints file loads, and its table of fields is that of the models."""

from __future__ import annotations

import re
from pathlib import Path

from proxylib import regex
from xds import model, model_ports, shape, source, yamltext
from xds.documents import KINDS
from xds.endpoints import load_endpoints, load_services
from xds.entities import ENTITIES
from xds.source import read_documents

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
TABLE = PAGE.partition("| field | |")[2].partition("\n\n")[0]
FIRST_CELLS = [line.split("|")[1] for line in TABLE.splitlines() if line.startswith("| `")]


def test_its_endpoints_and_services_load() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    documents = read_documents("policy.md", block)
    assert len(load_endpoints(documents)) == 3
    assert load_services(documents).names() == {"cache", "db"}


def test_its_fields_are_those_of_the_models() -> None:
    told = {
        word
        for cell in FIRST_CELLS
        for name in re.findall(r"`([^`]+)`", cell)
        for word in re.findall(r"[A-Za-z]+", name.partition(":")[0])
    }
    known = {
        info.alias or name
        for shapes in model.FIELDS.values()
        for shape in (shapes if isinstance(shapes, tuple) else (shapes,))
        for name, info in shape.model_fields.items()
    }
    assert told <= known
    rules = {name for shape in model.RULES for name in shape.model_fields}
    assert rules | set(model.Spec.model_fields) <= told


def test_its_bounds_are_those_of_the_code() -> None:
    bounds = PAGE.partition("## Bounds")[2].partition("##")[0].replace(",", "")
    assert f"{source.MAX_FILE >> 20} MiB per file" in bounds
    assert f"{yamltext.MAX_DEPTH} levels {yamltext.MAX_NODES} values" in bounds
    assert f"{yamltext.MAX_KEYS} keys in a mapping {shape.MAX_ITEMS} items in a list" in bounds
    assert f"{model_ports.MAX_PORTS} ports" in bounds
    assert f"{regex.MAX_PATTERN} characters" in bounds
    assert f"{regex.Budget().instructions} RE2 instructions" in bounds
    assert yamltext.MAX_PROBLEMS == 100


def test_it_names_every_kind_and_entity() -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([^`]+)`", prose))
    assert named >= KINDS.keys()
    assert named >= ENTITIES.keys()
