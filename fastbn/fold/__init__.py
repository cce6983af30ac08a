"""Fold batch norms into the convolutions and linear layers beside them, for a network that serves.

In evaluation batch norm is ``y = x * scale + shift`` per channel, and so is a part of what a
convolution does anyway. After folding there is one array less to read and one less to write for
every layer, and whatever runs the convolutions (ONNX Runtime, OpenCV, SciPy) needs no batch norm.

==========================================  ====================  ==============================
in the network                              take                  gives
==========================================  ====================  ==============================
convolution, transposed too, then norm      `fold_conv_bn`        weight, bias
linear layer, then norm                     `fold_linear_bn`      weight, bias
norm, then convolution                      `fold_bn_conv`        weight, bias, value to pad with
norm, then linear layer                     `fold_bn_linear`      weight, bias
biases that a norm behind them takes away   `redundant_biases`    which, and how sure that is
a checkpoint's norms, by their names        `fold_checkpoint`     all arrays, and what was left
==========================================  ====================  ==============================

Weights are in torch's layout: ``(out, in / groups, *kernel)``, transposed convolutions
``(in, out / groups, *kernel)``, linear layers ``(out, in)``. Keras and Flax have
``(*kernel, in, out)``: for a 2-d kernel that is ``kernel.transpose(3, 2, 0, 1)``.

Everything is worked out in float64 and rounded once, to the dtype of the weight. The layer's
running statistics count, in whichever mode it is; nothing that is passed is changed.
"""

from fastbn.fold.checkpoint import FoldedCheckpoint, fold_checkpoint
from fastbn.fold.convolutions import (
    Folded,
    FoldedBefore,
    fold_bn_conv,
    fold_bn_linear,
    fold_conv_bn,
    fold_linear_bn,
)
from fastbn.fold.redundant import RedundantBias, redundant_biases

__all__ = [
    "Folded",
    "FoldedBefore",
    "FoldedCheckpoint",
    "RedundantBias",
    "fold_bn_conv",
    "fold_bn_linear",
    "fold_checkpoint",
    "fold_conv_bn",
    "fold_linear_bn",
    "redundant_biases",
]
