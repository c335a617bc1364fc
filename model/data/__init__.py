"""Token files, sample index, batches; no torch except in batch.py and loader.py."""
