"""One call, from arguments to kernel, top to bottom.

``prepared``     calls like one before: look up, run
``operations``   the others: every check, then the work, then the update
``arguments``    checks and their messages
``views``        flat views, what must be copied
``plan``         (shape, strides, dtype, axis, operation) -> how arrays are walked, and the frame
``run``          the only place where an entry is called
"""
