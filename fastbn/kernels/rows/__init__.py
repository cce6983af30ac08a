"""Layer norm and RMS norm: a row goes through all steps while it is in the nearest cache.

Each row has statistics of its own, and each column a weight and a bias, so that no step waits for
other rows. A task is some rows. Four go side by side: what belongs to a column is loaded once for
all of them, and while one waits for a sum, others do not. What is constant along a row is a vector
of it in memory. Rows further on are fetched meanwhile, a cache line after the other.

A row that float32 cannot hold is left as it is, and marked; the caller does it again in float64.
"""
