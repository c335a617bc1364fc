"""How tensors and layers are cut over ranks."""
