"""How fast fastbn is: as ratios, measured in one run, to a copy of the same bytes and to peers.

``pytest benchmarks`` measures, ``python -m benchmarks`` compares, records and reports.
"""
