"""Types: what is right passes a strict type checker, and what is wrong does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastbn

#: Every public call, as a user writes it.
RIGHT = """
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastbn
import fastbn.njit
from fastbn import BatchNorm1d, BatchNorm2d, BatchNorm3d, ChannelStats, ForwardCache, Gradients

Array = NDArray[np.float32]


def functions(x: Array, mean: Array, var: Array, weight: Array, bias: Array) -> ChannelStats:
    y: NDArray[Any] = fastbn.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5)
    fastbn.batch_norm(x, mean, var, axis=-1, out=x, on_nonfinite="skip")
    fastbn.batch_norm(x, mean, var, residual=x, activation="relu", negative_slope=0.1)
    print(BatchNorm2d(3, activation="silu")(x, residual=x, mask=x > 0).sum())
    fastbn.batch_norm(x, training=True, mask=x > 0)
    fastbn.channel_stats(x, mask=x > 0, skipna=True)
    parts = [fastbn.channel_stats(x, extremes=True), ChannelStats.load("stats.npz")]
    both: ChannelStats = parts[0] + parts[1]
    both.save("stats.json")
    both = sum(parts, ChannelStats.empty(3))
    digits = both.mean_low if both.min is None else both.min + both.m2_low
    print(digits)
    cache: ForwardCache
    y, cache = fastbn.batch_norm_forward(x, weight=weight, training=True)
    gradients: Gradients = fastbn.batch_norm_backward(y, cache, out=y)
    dx, d_weight, d_bias = gradients
    print(gradients.residual.sum())
    total: float = float(dx.sum() + gradients.x.sum() + d_weight.sum())
    stats = fastbn.channel_stats(x, axis=-1)
    stats = stats.merge(ChannelStats.from_array(x)).merge(ChannelStats.empty(3))
    print(stats.mean + stats.var() + stats.std(ddof=1), stats.count, total)
    return stats


def files(folder: str) -> fastbn.DatasetStats:
    found = fastbn.dataset_stats([folder, "x.npz:x"], mode="RGB", workers=2, histogram=True)
    counts = found.histograms.counts if found.histograms is not None else found.nan_count
    fastbn.normalize_dataset("x.npy", "y.npy", found.stats.mean, found.stats.std(), out_axis=1)
    print(counts.sum(), found.files + 1, sorted(found.unreadable.items()), found.greatest)
    return found


def images(x: NDArray[np.uint8], mean: Array, out: Array) -> NDArray[Any]:
    mean_of_each = (0.5, 0.5, 0.5)
    y: NDArray[Any] = fastbn.standardize(x, mean_of_each, 0.2, scale=1 / 255, axis=-1, out_axis=1)
    fastbn.standardize(x, mean, [1, 2, 3], dtype=np.float64, zero_std=1.0)
    fastbn.standardize(out, mean, mean, out=out)
    return fastbn.destandardize(y, mean, np.float32(1), out_axis=-1, dtype="uint8")


def train(layers: list[BatchNorm1d], batches: list[Array], rate: float) -> None:
    for x in batches:
        for bn in layers:
            gradients = bn.backward(bn(x))
            for name, parameter in bn.parameters().items():
                parameter -= rate * gradients.parameters()[name]
            bn.weight -= rate * gradients.weight
            bn.bias = bn.bias - rate * gradients.bias


def compiled(x: Array, mean: Array, var: Array) -> float:
    terms = fastbn.njit.normalizing_terms(mean, var, eps=1e-3, dtype=np.float32)
    fastbn.njit.batch_norm_row(x[0], terms, 0, out=x[0])
    fastbn.njit.batch_norm_line(x[:, 0], terms, x[:, 0])
    moments: tuple[float, float, float] = fastbn.njit.row_moments(x)
    return fastbn.njit.merge_moments(0, 0, 0, *moments)[1]


def serve(bn: BatchNorm2d, x: Array, out: Array) -> NDArray[Any]:
    scale, shift = bn.affine_terms()
    print((x * scale + shift).shape, bn.running_mean.sum(), int(bn.num_batches_tracked))
    return bn.eval()(x, out=out)


def life(x: Array) -> None:
    bn = BatchNorm3d(
        64, 1e-3, None, True, True, None, np.float64, bias=False, axis=-1, on_nonfinite="raise"
    )
    same: BatchNorm3d = bn.train().freeze().unfreeze().train(False)
    same.training = True
    same.eps, same.momentum, same.axis, same.on_nonfinite = 1e-5, None, 1, "skip"
    y, cache = bn.forward_with_cache(x, out=x)
    print(bn.backward(y, cache).x, bn.forward(x), bn.num_features + 1, bn.affine)
    missing, unexpected = BatchNorm2d(64, device="cpu", dtype="float32").load_state_dict(
        bn.state_dict("bn."), prefix="bn.", strict=False
    )
    print(missing[:1], unexpected[:1])
    report: fastbn.SmallBatchReport = fastbn.small_batch_report(bn, x.shape)
    print(report, report.too_large, report.var_error + report.mean_error, report.instead[:1])
    bn.virtual_batch_size = BatchNorm1d(4, virtual_batch_size=16).virtual_batch_size
    bn.reset_running_stats()
    bn.reset_parameters()


class Logged(BatchNorm2d):
    def forward(
        self, x: Array, *, out: Array | None = None, residual: Array | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[Any]:
        return super().forward(x, out=out, residual=residual, mask=mask)

    def __call__(self, x: Array, **how: Any) -> NDArray[Any]:
        return super().__call__(x, **how)


def process() -> None:
    fastbn.set_num_threads(fastbn.get_num_threads())
    fastbn.set_num_threads(None)
    fastbn.set_reuse_limit(fastbn.get_reuse_limit())
    x = np.ones((4, 3), np.float32)
    for layer in (
        fastbn.GroupNorm(2, 4, axis=-1, bias=False), fastbn.LayerNorm((4, 5), 1e-5, bias=False),
        fastbn.RMSNorm(5, eps=None), fastbn.InstanceNorm1d(4, affine=True),
        fastbn.InstanceNorm2d(4, track_running_stats=True), fastbn.InstanceNorm3d(4),
    ):
        normed: NDArray[Any] = layer.train()(x)
        layer.eval().backward(normed, layer.forward_with_cache(x)[1]).parameters()
    for renorm in (
        fastbn.BatchRenorm1d(3, r_max=fastbn.Ramp(1, 3, 100, 1000), d_max=0.5),
        fastbn.BatchRenorm2d(3, 1e-3, None, on_nonfinite="skip"),
        fastbn.BatchRenorm3d(3, r_max=lambda step: 1 + step / 100),
    ):
        renorm.r_max, renorm.d_max = 3, fastbn.Ramp(0, 5, 0, 10)
        kept_renorm: ForwardCache = renorm.forward_with_cache(x)[1]
        print(renorm.backward(x, kept_renorm).x, renorm.train().freeze()(x))
    normed = fastbn.group_norm(x, 2, x[0], x[0], out=x) + fastbn.rms_norm(x, 3, x[0], 1e-6)
    normed = fastbn.layer_norm(x, (3,), bias=x[0]) + fastbn.instance_norm(x, momentum=0.5)
    for y, kept in (
        fastbn.group_norm_forward(x, 2), fastbn.instance_norm_forward(x, use_input_stats=True),
        fastbn.layer_norm_forward(x, 3), fastbn.rms_norm_forward(x, 3),
    ):
        normed = fastbn.norm_backward(y, kept, out=y).x
    of_any: fastbn.NormCache = fastbn.layer_norm_forward(x, 3)[1]
    print(isinstance(of_any, fastbn.NormCache), fastbn.norm_backward(y, of_any).x)
    for norm in (fastbn.LayerNorm(3), fastbn.GroupNorm(1, 3), fastbn.RMSNorm(3)):
        y, of_any = norm.forward_with_cache(x)
        print(norm.backward(y, of_any, out=y).x is y)
    bn = BatchNorm1d(3)
    y, of_batch = bn.forward_with_cache(x)
    print(bn.backward(y, of_batch, out=y).x is y, bn.backward(y, out=y).x is y)
    of_any = of_batch
    fastbn.warmup(["float32", np.float64], ["channels_last"], ["evaluation"], progress=False)
    print(fastbn.__version__)


def serving(layers: list[BatchNorm2d], batches: list[Array], weight: Array) -> None:
    one: ChannelStats = fastbn.recalibrate(layers[0], iter(batches), progress=False)
    both: list[ChannelStats] = fastbn.recalibrate(layers, lambda: batches, forward=layers[1])
    folded = fastbn.fold.fold_conv_bn(weight, None, layers[0], transposed=True, groups=2)
    folded = fastbn.fold.fold_linear_bn(folded.weight, folded.bias, layers[0])
    new_weight, new_bias, padding = fastbn.fold.fold_bn_conv(layers[0], *folded, stride=1)
    new_weight, new_bias = fastbn.fold.fold_bn_linear(layers[0], new_weight, new_bias)
    print(one.mean + both[0].mean, new_weight.sum() + padding.sum())
    for found in fastbn.fold.redundant_biases(layers[0].state_dict()):
        print(found.bias, found.norm, found.certainty, found.running_mean.sum(), found.error + 1)
    state = layers[0].state_dict(prefix="bn.")
    healths: list[fastbn.Health] = fastbn.inspect_batch_norms(state, eps=1e-5)
    print(healths[0].faults, healths[0].scale)
    whole = fastbn.fold.fold_checkpoint(state)
    whole = fastbn.fold.fold_checkpoint(state, pairs={"bn": "c"}, skip=["a"], transposed={"c"})
    print(whole.pairs[0].assumed)
    print(whole.tensors, whole.pairs, whole.left[0].why)
    fastbn.save({"bn": layers[0], "w": new_weight}, "norms.npz")
    loaded = fastbn.load_batch_norms("norms.npz", prefix="", eps=1e-5, dimensions=2)
    print(loaded["bn"](new_weight), fastbn.load_tensors("norms.npz", ["w"])["w"].sum())


def scaling(x: Array, table: list[list[int]]) -> NDArray[Any]:
    scaler: fastbn.StandardScaler = fastbn.StandardScaler(copy=False, with_std=True, axis=1)
    scaler = scaler.fit(table).partial_fit(x, None, x[:, 0]).set_params(copy=True)
    same: fastbn.StandardScaler = scaler.set_output(transform="pandas").set_output()
    y: NDArray[Any] = same.fit_transform(x) + scaler.transform(x, copy=False)
    print(scaler.get_params()["axis"], scaler.n_features_in_ + 1, scaler.feature_names_in_.size)
    y = (x - scaler.mean_ / 2) / scaler.scale_ + scaler.get_feature_names_out().size + scaler.var_
    y += scaler.inverse_transform(y)
    return y
"""

#: Typical mistakes, each of them an error at run time too.
WRONG = {
    "policy": 'fastbn.BatchNorm2d(3, on_nonfinite="ignore")',
    "device": 'fastbn.BatchNorm2d(3, device="gpu")',
    "momentum": "fastbn.batch_norm(x, x, x, training=True, momentum=None)",
    "number": 'fastbn.BatchNorm2d("64")',
    "keyword": 'fastbn.BatchNorm2d(3, data_format="channels_last")',
    "attribute": "fastbn.BatchNorm2d(3).runing_mean = x",
    "setting": "fastbn.BatchNorm2d(3).eps = None",
    "cache": "fastbn.batch_norm_backward(x, x)",
    "layer's pair": "fastbn.BatchNorm2d(3).forward_with_cache(x).sum()",
    "gradient": "bn = fastbn.BatchNorm1d(3); bn.backward(bn(x)).weights",
    "list": "fastbn.batch_norm([[1.0, 2.0]])",
    "mode": 'fastbn.warmup(modes=["eval"])',
    "text": 'fastbn.warmup(layouts="channels_first")',
    "path": 'fastbn.BatchNorm2d(3).load_state_dict("model.pth")',
    "batches": "fastbn.recalibrate(fastbn.BatchNorm2d(3), 3)",
    "folded": "fastbn.fold.fold_conv_bn(x, None, fastbn.GroupNorm(2, 4))",
    "argument": "fastbn.BatchNorm2d(3)(x, training=True)",
    "position": "fastbn.StandardScaler(True)",
}
HEAD = "import numpy as np\nimport fastbn\nx = np.ones((4, 3), np.float32)\n"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What mypy says, strict, of the right script and of each wrong line, by file."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "right.py").write_text(RIGHT)
    for k, line in enumerate(WRONG.values()):
        (folder / f"wrong_{k}.py").write_text(f"{HEAD}{line}\n")
    names = sorted(path.name for path in folder.glob("*.py"))
    package = Path(fastbn.__file__).parent.parent
    found_by_itself = package.name == "site-packages"  # and mypy refuses to be told of that
    path = {} if found_by_itself else {"MYPYPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-color-output", "--config-file=", *names],
        cwd=folder, capture_output=True, text=True, timeout=600,
        env={**os.environ, **path},
    )  # fmt: skip
    assert done.stderr == ""
    found = {name: [] for name in names}
    for line in done.stdout.splitlines():
        place = re.match(r"(\w+\.py):(\d+): error: (.*)", line)
        if place:
            found[place[1]].append((int(place[2]), place[3]))
    return found


@pytest.mark.compiled  # a type checker sees the same sources: once is enough
def test_every_public_call_passes_a_strict_type_checker(checked):
    assert checked["right.py"] == []
    for name in fastbn.__all__:
        assert name in RIGHT, f"{name} is not called"


@pytest.mark.compiled
@pytest.mark.parametrize("mistake", WRONG)
def test_a_typical_mistake_does_not_pass(mistake, checked):
    errors = checked[f"wrong_{list(WRONG).index(mistake)}.py"]
    assert {number for number, _ in errors} == {HEAD.count("\n") + 1}


@pytest.mark.parametrize("mistake", WRONG)
def test_nor_does_it_run(mistake):
    """Else a type checker would forbid what is right."""
    with pytest.raises((TypeError, ValueError, AttributeError)):
        exec(HEAD + WRONG[mistake], {})


def test_the_right_script_can_be_executed():
    exec(RIGHT, {"__name__": "right"})
