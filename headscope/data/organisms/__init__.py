"""Ground truth: transformers whose heads were written down, not trained."""

from headscope.data.organisms.organism import KINDS, Organism, organism

__all__ = ["KINDS", "Organism", "organism"]
