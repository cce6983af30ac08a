"""Channels last: x[r, c] at ``r * row + c``; (N, C) is the plain case.

Few channels would leave most of a vector empty, so ``fold`` rows that follow each other in memory
are read as one line of ``fold * channels`` columns, and the columns of a channel are merged at the
end. Rows that do not fill a line come last, one short line and a segment of its own.
"""
