"""The control plane: turns one configuration and one site into a batch job.  Pure Python, no torch."""

__version__ = "0.1.0"
