"""Short settings with which tests run the commands."""

from __future__ import annotations

_LINES = """--epochs 1 --iterations 2 --set val_iterations=1 --set batch_size=2 -np 1 -device cpu"""
SHORT = _LINES.split()
"""Flags of a training that takes a second or two."""
