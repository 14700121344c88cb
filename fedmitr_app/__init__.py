"""One-shot federated learning with Vision Transformers (FedMITR, arXiv 2605.10748)."""

__version__ = "0.1.0"
