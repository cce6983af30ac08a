"""Loops over memory. A kernel never checks its arguments and never sees a layer."""
