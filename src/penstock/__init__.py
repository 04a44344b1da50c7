"""Penstock: LLM infrastructure in one package.  See docs/architecture.md."""

__version__ = "0.1.0"
