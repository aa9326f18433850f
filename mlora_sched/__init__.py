"""Train many LoRA and MixLoRA jobs of many people at once on one shared frozen base model."""

__version__ = "0.1.0"
