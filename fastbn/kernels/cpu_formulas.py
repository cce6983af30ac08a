"""The formulas, compiled for CPU kernels: scalars and SIMD vectors alike."""

from fastbn.kernels import formulas
from fastbn.kernels.compile import inner

merge = inner(formulas.merge)
moments_from_sums = inner(formulas.moments_from_sums)
reciprocal_std = inner(formulas.reciprocal_std)
affine_terms = inner(formulas.affine_terms)
normalize = inner(formulas.normalize)
centered_product_sum = inner(formulas.centered_product_sum)
weight_gradient = inner(formulas.weight_gradient)
input_gradient_terms = inner(formulas.input_gradient_terms)
input_gradient = inner(formulas.input_gradient)
unbiased = inner(formulas.unbiased)
running_update = inner(formulas.running_update)
