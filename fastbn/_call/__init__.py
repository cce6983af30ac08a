"""One call, from arguments to kernel, top to bottom.

``prepared``     calls like one before: look up, run
``operations``   the others: every check, then the work, then the update
``arguments``    checks of arrays and their messages; ``settings``: of numbers and names
``epilogue``     what follows normalizing in the same pass
``masked``       statistics of what a mask keeps
``groups``       group and instance norm; ``rows``: layer and RMS norm, with ``row_plan`` and
                 ``known_rows``; ``blocks`` of samples, where something must be copied
``ghost``        batch norm of each group of samples; ``renorm``: with another weight and bias
``pieces``       statistics of arrays that no kernel can walk
``work``         which views go into an operation, and what is copied first
``known``        what a call leaves behind for later ones like it
``run``          native code is called: which frame, on how many threads
``plan``         (shape, strides, dtype, axis, operation) -> how arrays are walked, how work is cut
``views``        flat views, and writes that nothing interrupts
``device*``      the same on an NVIDIA GPU
``warmup``       compile ahead
"""
