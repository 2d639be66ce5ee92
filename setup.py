"""Build of the distribution: Python packages, and the shared library by cffi."""

from setuptools import find_packages, setup

setup(
    name="proxylib",
    version="0.1.0",
    description="Envoy L7 extensions in Python: parsers, policy and control server",
    python_requires=">=3.11",
    packages=find_packages(include=["proxylib*", "parsers*", "xds*", "node*"]),
    package_data={"proxylib": ["proto/*.proto", "proto/*.pyi", "native/*.c", "native/*.h", "py.typed"]},
    entry_points={
        "console_scripts": ["proxylib = node.cli:main"],
        "proxylib.parsers": ["r2d2 = parsers.r2d2", "memcache = parsers.memcache"],
    },
)
