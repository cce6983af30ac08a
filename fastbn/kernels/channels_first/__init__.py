"""Channels first: x[n, c, l] at ``n * row + c * channel + l``; a row is contiguous.

Short rows: a line is a row. Long rows are cut into pieces, and a line is a piece.
"""
