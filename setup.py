"""The one thing that pyproject.toml cannot say: how the C core is compiled."""

from setuptools import setup

setup(cffi_modules=["nat_rewriter/kernel/_core/build.py:ffibuilder"])
