"""What pyproject.toml cannot say: how the C core is compiled, and that one build serves every Python from 3.11 on."""

from setuptools import setup

setup(
    cffi_modules=[
        "nat_rewriter/kernel/_core/build.py:ffibuilder",
        "nat_rewriter/proxy/_core/build.py:ffibuilder",
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
