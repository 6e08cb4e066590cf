"""Layers that keep, or adapt, a weight in another way than `LoRALayer`."""

from lora.variants.nf4 import NF4Linear, QuantizedLayer, QuantizeReport, quantize

__all__ = ["NF4Linear", "QuantizeReport", "QuantizedLayer", "quantize"]
