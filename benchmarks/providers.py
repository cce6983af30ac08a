"""Who computes it: fastbn and its peers, each in the way its own users would write it.

A provider makes, for a problem and an operation, a function without arguments that does the
work once and returns its first result, the output or gradient. Inputs are converted ahead, so
that none is charged for coming from NumPy.
"""

import importlib.util
import io
from collections.abc import Callable

import numpy as np

import fastbn
from benchmarks.problem import EPS, MOMENTUM, Problem

Call = Callable[[], object]


class Unsupported(Exception):
    """The provider has no such operation; the message says what is missing."""


class Provider:
    """Makes calls; subclasses have a method for each operation that they offer."""

    name = ""
    package = ""

    def missing(self) -> str | None:
        """The package that is not installed, if any."""
        found = not self.package or importlib.util.find_spec(self.package)
        return None if found else self.package

    def call(self, operation: str, p: Problem) -> Call:
        """The function to time."""
        method = getattr(self, operation, None)
        if method is None:
            raise Unsupported(f"{self.name} has no {operation}")
        return method(p)


class FastbnOut(Provider):
    """fastbn, writing into an array that is there."""

    name = "fastbn out="

    def _out(self, p: Problem) -> np.ndarray | None:
        return np.empty_like(p.x)

    def evaluation(self, p: Problem) -> Call:
        out = self._out(p)
        return lambda: fastbn.batch_norm(
            p.x, p.mean, p.var, p.weight, p.bias, False, MOMENTUM, EPS, axis=p.axis, out=out
        )

    def training(self, p: Problem) -> Call:
        out, mean, var = self._out(p), p.mean.copy(), p.var.copy()
        return lambda: fastbn.batch_norm(
            p.x, mean, var, p.weight, p.bias, True, MOMENTUM, EPS, axis=p.axis, out=out
        )

    def backward(self, p: Problem) -> Call:
        out = self._out(p)
        _, cache = fastbn.batch_norm_forward(
            p.x, None, None, p.weight, p.bias, True, MOMENTUM, EPS, axis=p.axis
        )
        return lambda: fastbn.batch_norm_backward(p.dy, cache, out=out).x


class Fastbn(FastbnOut):
    """fastbn, returning a new array."""

    name = "fastbn"

    def _out(self, p: Problem) -> None:
        return None

    def statistics(self, p: Problem) -> Call:
        return lambda: fastbn.channel_stats(p.x, p.axis).mean


class NumPy(Provider):
    """The formulas as NumPy expressions."""

    name = "NumPy"

    def evaluation(self, p: Problem) -> Call:
        mean, var, weight, bias = map(p.per_channel, (p.mean, p.var, p.weight, p.bias))
        return lambda: (p.x - mean) / np.sqrt(var + p.dtype.type(EPS)) * weight + bias

    def training(self, p: Problem) -> Call:
        running_mean, running_var = p.mean.copy(), p.var.copy()
        weight, bias = map(p.per_channel, (p.weight, p.bias))
        correction = p.case.count / (p.case.count - 1)

        def train():
            mean = p.x.mean(p.others, keepdims=True)
            centered = p.x - mean
            var = (centered * centered).mean(p.others, keepdims=True)
            running_mean[:] += MOMENTUM * (mean.ravel() - running_mean)
            running_var[:] += MOMENTUM * (var.ravel() * correction - running_var)
            return centered / np.sqrt(var + p.dtype.type(EPS)) * weight + bias

        return train

    def backward(self, p: Problem) -> Call:
        weight = p.per_channel(p.weight)
        mean = p.x.mean(p.others, keepdims=True)
        rstd = 1 / np.sqrt(p.x.var(p.others, keepdims=True) + p.dtype.type(EPS))
        count = p.dtype.type(p.case.count)

        def backward():
            x_hat = (p.x - mean) * rstd
            d_bias = p.dy.sum(p.others, keepdims=True)
            d_weight = (p.dy * x_hat).sum(p.others, keepdims=True)
            return weight * rstd * (p.dy - d_bias / count - x_hat * (d_weight / count))

        return backward

    def statistics(self, p: Problem) -> Call:
        return lambda: (p.x.mean(p.others), p.x.var(p.others))[0]


class Torch(Provider):
    """torch.nn.functional.batch_norm, and its gradient by autograd."""

    name = "torch"
    package = "torch"

    def _tensors(self, p: Problem):
        import torch

        torch.set_num_threads(fastbn.get_num_threads())
        x, dy = (torch.from_numpy(a).movedim(p.axis, 1) for a in (p.x, p.dy))
        vectors = (torch.from_numpy(v.copy()) for v in (p.mean, p.var, p.weight, p.bias))
        return torch, x, dy, vectors

    def _forward(self, p: Problem, training: bool) -> Call:
        torch, x, _, vectors = self._tensors(p)
        mean, var, weight, bias = vectors

        def forward():
            with torch.inference_mode():
                return torch.nn.functional.batch_norm(
                    x, mean, var, weight, bias, training, MOMENTUM, EPS
                )

        return forward

    def evaluation(self, p: Problem) -> Call:
        return self._forward(p, False)

    def training(self, p: Problem) -> Call:
        return self._forward(p, True)

    def backward(self, p: Problem) -> Call:
        torch, x, dy, (mean, var, weight, bias) = self._tensors(p)
        inputs = tuple(t.requires_grad_() for t in (x.detach(), weight, bias))
        y = torch.nn.functional.batch_norm(inputs[0], mean, var, weight, bias, True, MOMENTUM, EPS)
        return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)[0]

    def statistics(self, p: Problem) -> Call:
        torch, x, _, _ = self._tensors(p)
        dims = tuple(k for k in range(x.ndim) if k != 1)

        def statistics():
            with torch.inference_mode():
                return torch.var_mean(x, dims, correction=0)[1]

        return statistics


class OnnxRuntime(Provider):
    """ONNX Runtime: a model of one BatchNormalization, called by ``run``."""

    name = "ONNX Runtime"
    package = "onnxruntime"

    def missing(self) -> str | None:
        """It needs the package onnx as well, to write the model."""
        return super().missing() or (None if importlib.util.find_spec("onnx") else "onnx")

    def evaluation(self, p: Problem) -> Call:
        if p.axis != 1:
            raise Unsupported("ONNX Runtime has no BatchNormalization with channels last")
        import onnx
        import onnxruntime

        kind = onnx.helper.np_dtype_to_tensor_dtype(p.dtype)
        names = ("weight", "bias", "mean", "var")
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=EPS)],
            "batch_norm",
            [onnx.helper.make_tensor_value_info("x", kind, p.x.shape)],
            [onnx.helper.make_tensor_value_info("y", kind, p.x.shape)],
            [onnx.numpy_helper.from_array(getattr(p, name), name) for name in names],
        )
        opset = onnx.helper.make_opsetid("", 15)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
        file = io.BytesIO()
        onnx.save(model, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = fastbn.get_num_threads()
        session = onnxruntime.InferenceSession(
            file.getvalue(), options, providers=["CPUExecutionProvider"]
        )
        feed = {"x": p.x}
        return lambda: session.run(None, feed)[0]


class Jax(Provider):
    """The formulas in JAX, jitted, on arrays that are JAX's own; the gradient by vjp."""

    name = "JAX"
    package = "jax"

    def _arrays(self, p: Problem):
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        names = ("x", "dy", "mean", "var", "weight", "bias")
        return jax, *(jax.numpy.asarray(getattr(p, name)) for name in names)

    def evaluation(self, p: Problem) -> Call:
        jax, x, _, mean, var, weight, bias = self._arrays(p)

        @jax.jit
        def evaluate(x, mean, var, weight, bias):
            scale = p.per_channel(weight / jax.numpy.sqrt(var + EPS))
            return (x - p.per_channel(mean)) * scale + p.per_channel(bias)

        return lambda: evaluate(x, mean, var, weight, bias).block_until_ready()

    def _normalize(self, p: Problem, jax):
        def normalize(x, weight, bias):
            mean, var = x.mean(p.others, keepdims=True), x.var(p.others, keepdims=True)
            scale = p.per_channel(weight) / jax.numpy.sqrt(var + EPS)
            return (x - mean) * scale + p.per_channel(bias), (mean.ravel(), var.ravel())

        return normalize

    def training(self, p: Problem) -> Call:
        jax, x, _, mean, var, weight, bias = self._arrays(p)
        normalize, correction = self._normalize(p, jax), p.case.count / (p.case.count - 1)

        @jax.jit
        def train(x, mean, var, weight, bias):
            y, (batch_mean, batch_var) = normalize(x, weight, bias)
            return (
                y,
                mean + MOMENTUM * (batch_mean - mean),
                var + MOMENTUM * (batch_var * correction - var),
            )

        return lambda: jax.block_until_ready(train(x, mean, var, weight, bias))[0]

    def backward(self, p: Problem) -> Call:
        jax, x, dy, _, _, weight, bias = self._arrays(p)
        normalize = self._normalize(p, jax)
        forward = jax.jit(lambda *inputs: jax.vjp(lambda *i: normalize(*i)[0], *inputs)[1])
        residuals = forward(x, weight, bias)
        backward = jax.jit(lambda residuals, dy: residuals(dy))
        return lambda: jax.block_until_ready(backward(residuals, dy))[0]

    def statistics(self, p: Problem) -> Call:
        jax, x, *_ = self._arrays(p)
        statistics = jax.jit(lambda x: (x.mean(p.others), x.var(p.others)))
        return lambda: jax.block_until_ready(statistics(x))[0]


PROVIDERS: dict[str, Provider] = {
    p.name: p for p in (FastbnOut(), Fastbn(), NumPy(), Torch(), OnnxRuntime(), Jax())
}
