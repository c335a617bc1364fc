"""Implementations of single operations; model/implementations.py chooses among them."""
