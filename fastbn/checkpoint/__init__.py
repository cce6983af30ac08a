"""Checkpoints: arrays and batch norms out of files, and into files."""
