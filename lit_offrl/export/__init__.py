"""Policies as files that run without this library, and running them."""

from lit_offrl.export.facts import PolicyFacts
from lit_offrl.export.running import OnnxPolicy, load_onnx
from lit_offrl.export.writing import export_policy

__all__ = ["OnnxPolicy", "PolicyFacts", "export_policy", "load_onnx"]
