"""Elementwise passes from memory of one kind to memory of another: bytes to float32, and back.

`runs` has the ways along a row, `parts` makes parts of them, with the loop over rows. The formula
is that of `normalize`, and terms come ready in a table.
"""
