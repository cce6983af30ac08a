"""What may be set on a layer, when, and how it is shown."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import fastbn
from fastbn import BatchNorm1d, BatchNorm2d, BatchNorm3d
from tests.test_errors import raises

LAYERS = [BatchNorm1d, BatchNorm2d, BatchNorm3d]


@pytest.mark.parametrize("warm", [False, True])
def test_num_features_is_fixed_whether_calls_are_prepared_or_not(warm, rng):
    x = rng.normal(size=(4, 3, 5, 5)).astype(np.float32)
    bn = BatchNorm2d(3).eval()
    for _ in range(2 * warm):
        bn(x)
    with raises(AttributeError, "num_features is fixed", "BatchNorm2d(..., num_features=8)"):
        bn.num_features = 8
    assert bn.num_features == 3
    assert bn(x).shape == x.shape


@pytest.mark.parametrize(("name", "value"), [("affine", False), ("track_running_stats", False)])
def test_what_the_arrays_follow_from_is_fixed(name, value):
    bn = BatchNorm2d(3)
    with raises(AttributeError, f"{name} is fixed", f"{name}=False"):
        setattr(bn, name, value)
    assert getattr(bn, name) is True


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("eps", [-1.0, 0, float("nan"), "1e-5", None, True], 1e-3),
        ("momentum", [-0.1, 1.5, "0.1", True, float("nan")], None),
        ("axis", [0, 7, -7, 1.5, None, "1"], -1),
        ("on_nonfinite", ["ignore", None, 3], "skip"),
        ("training", ["yes", 1, None], False),
    ],
)
def test_settings_are_checked_as_the_constructor_checks_them(layer, name, bad, good):
    bn = layer(3)
    before = getattr(bn, name)
    for value in bad:
        with pytest.raises((TypeError, ValueError)) as set_later:
            setattr(bn, name, value)
        assert getattr(bn, name) == before
        if name == "training":
            continue
        with pytest.raises(set_later.type) as constructed:
            layer(3, **{name: value})
        assert str(set_later.value) == str(constructed.value)
    setattr(bn, name, good)
    assert getattr(bn, name) == good


def test_what_is_set_counts(rng):
    x = rng.normal(size=(6, 3)).astype(np.float32)
    bn, other = BatchNorm1d(3), BatchNorm1d(3, eps=2.0, momentum=0.5)
    bn.eps, bn.momentum = 2, 0.5
    np.testing.assert_array_equal(bn(x), other(x))
    np.testing.assert_array_equal(bn.running_mean, other.running_mean)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_arrays_are_checked_when_they_are_set(name):
    bn = BatchNorm1d(3)
    with raises(ValueError, name, "shape (3,)", "length 4"):
        setattr(bn, name, np.ones(4, np.float32))
    with raises(TypeError, name, "numpy.ndarray", "list"):
        setattr(bn, name, [1.0, 2.0, 3.0])
    with raises(TypeError, name, "float32, float64, float16 or bfloat16", "int64"):
        setattr(bn, name, np.ones(3, int))
    with raises(ValueError, name, "cannot be removed, got None"):
        setattr(bn, name, None)
    with raises(ValueError, f"{name} has dtype float64, expected that of the layer, float32"):
        setattr(bn, name, np.full(3, 2.0))
    new = np.full(3, 2.0, np.float32)
    setattr(bn, name, new)
    assert getattr(bn, name) is new
    if name == "running_var":
        with raises(ValueError, "negative values or NaN, which no variance can be"):
            bn.running_var = np.array([1, -1e-9, 1], np.float32)
        assert bn.running_var is new
    without = BatchNorm1d(3, affine=False, track_running_stats=False)
    with raises(ValueError, f"made without {name}"):
        setattr(without, name, new)
    assert getattr(without, name) is None


def test_the_counter_is_checked_when_it_is_set():
    bn = BatchNorm1d(3)
    for counter in (np.int64(3), 3, np.zeros(1, np.int64), np.zeros((), np.int32), np.array(1.5)):
        with raises(TypeError, "num_batches_tracked must be a writable int64 array", "in place"):
            bn.num_batches_tracked = counter
    bn.num_batches_tracked = np.array(7)
    assert bn.state_dict()["num_batches_tracked"] == 7


@pytest.mark.parametrize("layer", LAYERS)
def test_a_misspelt_attribute_is_an_error(layer):
    bn = layer(3)
    with raises(AttributeError, f"{layer.__name__} has no attribute 'runing_mean'", "running_mean"):
        bn.runing_mean = np.zeros(3)
    with raises(AttributeError, "has no attribute 'colour'"):
        bn.colour = 3
    with pytest.raises(AttributeError):
        bn.runing_mean  # noqa: B018
    with raises(AttributeError, "has no attribute 'gamma'", "here it is weight"):
        bn.gamma = np.ones(3)
    with raises(AttributeError, "'parameters' is read-only"):
        bn.parameters = {}


class Named(BatchNorm2d):
    """A user's own layer, with an attribute of its own."""

    def __init__(self, name, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.name = name


class Slotted(BatchNorm2d):
    __slots__ = "name"  # a string is one name, and not its letters


class Private(Slotted):
    __slots__ = ("__secret",)

    def secret(self, *value):
        if value:
            (self.__secret,) = value
        return self.__secret


class Scheduled(BatchNorm2d):
    """A property over a slot, which needs an attribute of the subclass."""

    @property
    def momentum(self):
        return 1 / (1 + self.step)

    @momentum.setter
    def momentum(self, value):
        self.step = 0

    @property
    def refuses(self):
        return 3

    @refuses.setter
    def refuses(self, value):
        raise AttributeError("not today")


COPIES = {"pickle": lambda bn: pickle.loads(pickle.dumps(bn)), "deepcopy": copy.deepcopy,
          "copy": copy.copy}  # fmt: skip


@pytest.mark.parametrize("clone", COPIES)
def test_what_a_subclass_has_is_copied(clone):
    bn = Private(3)
    bn.name = "stem"
    bn.secret(7)
    twin = COPIES[clone](bn)
    assert (twin.name, twin.secret()) == ("stem", 7)
    with pytest.raises(AttributeError):
        bn.other = 3
    own = Scheduled(3)
    own.step = 4
    twin = COPIES[clone](own)
    assert (twin.step, twin.momentum) == (4, 0.2)
    twin.step = 5
    assert own.step == 4
    with raises(AttributeError, "not today"):
        own.refuses = 3


def test_a_pickle_of_before_may_have_attributes_that_there_are_no_more():
    bn, state = BatchNorm1d(3), BatchNorm1d(3, momentum=None).__getstate__()
    bn.__setstate__({**state, "label": "conv1"})
    assert bn.momentum is None


def test_a_subclass_has_attributes_of_its_own(rng):
    bn = Named("stem", 3, momentum=None)
    bn(rng.normal(size=(4, 3, 2, 2)).astype(np.float32))
    with raises(ValueError, "eps"):
        bn.eps = -1
    twin = pickle.loads(pickle.dumps(bn))
    assert (twin.name, twin.momentum, type(twin)) == ("stem", None, Named)
    np.testing.assert_array_equal(twin.running_var, bn.running_var)


# --- repr -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bn", "shown"),
    [
        (BatchNorm2d(3, dtype=np.float64), ", dtype=float64)"),
        (BatchNorm2d(3, axis=-1, on_nonfinite="skip"), ", axis=-1, on_nonfinite='skip')"),
        (BatchNorm2d(3).freeze(), ", frozen=True)"),
        (BatchNorm2d(3).eval(), "track_running_stats=True)"),
        (BatchNorm2d(3, affine=False, track_running_stats=False), "track_running_stats=False)"),
    ],
)
def test_repr_shows_what_differs_from_the_defaults(bn, shown):
    assert repr(bn).endswith(shown)


def test_repr_does_not_tell_modes_apart():
    assert repr(BatchNorm2d(3).eval()) == repr(BatchNorm2d(3))


# --- keywords of elsewhere ------------------------------------------------------------------

X = np.ones((4, 3), np.float32)


CALLS = {
    "BatchNorm2d": lambda **keywords: BatchNorm2d(3, **keywords),
    "batch_norm": lambda **keywords: fastbn.batch_norm(X, training=True, **keywords),
    "batch_norm_forward": lambda **keywords: fastbn.batch_norm_forward(X, **keywords),
    "channel_stats": lambda **keywords: fastbn.channel_stats(X, **keywords),
}


@pytest.mark.parametrize("name", CALLS)
def test_keywords_of_elsewhere_name_those_of_here(name):
    for keyword in ("data_format", "channels_last", "feature_axis", "dim"):
        with raises(TypeError, f"{name} has no argument {keyword!r}", "axis=-1"):
            CALLS[name](**{keyword: "NHWC"})
    with raises(TypeError, f"{name} has no argument 'qwerty'"):
        CALLS[name](qwerty=1)


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("epsilon", "here it is eps"),
        ("momentun", "did you mean 'momentum'?"),
        ("gamma", "affine=False"),
        ("num_channels", "here it is num_features"),
        ("decay", "1 - decay"),
        ("center", "bias=False"),
    ],
)
def test_a_constructor_knows_what_others_call_its_arguments(name, here):
    with raises(TypeError, f"BatchNorm2d has no argument {name!r}", here):
        BatchNorm2d(3, **{name: 1})


def test_no_keyword_is_proposed_that_there_is_not():
    for name in ("num_channels", "decay", "momentum", "center"):  # a layer's
        with pytest.raises(TypeError, match=f"has no argument '{name}'$"):
            fastbn.channel_stats(X, **{name: 1})
    with pytest.raises(TypeError, match=r"has no argument 'input'; here it is x$"):
        fastbn.channel_stats(input=X, x=X)


def test_a_call_knows_how_others_say_training():
    bn = BatchNorm1d(3)
    for name in ("training", "use_running_average"):
        with raises(TypeError, f"'{name}'"):
            bn(X, **{name: False})
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("made", "name", "here"),
    [
        (lambda **k: fastbn.LayerNorm(4, **k), "axis", "normalized_shape"),
        (lambda **k: fastbn.LayerNorm(4, **k), "dim", "normalized_shape"),
        (lambda **k: fastbn.RMSNorm(4, **k), "dim", "normalized_shape"),
        (lambda **k: fastbn.LayerNorm(4, **k), "begin_norm_axis", "normalized_shape"),
        (lambda **k: fastbn.LayerNorm(4, **k), "use_scale", "elementwise_affine=False"),
        (lambda **k: fastbn.LayerNorm(4, **k), "scale", "elementwise_affine=False"),
        (lambda **k: fastbn.LayerNorm(4, **k), "use_bias", "bias=False"),
        (lambda **k: fastbn.LayerNorm(4, **k), "affine", "here it is elementwise_affine"),
        (lambda **k: fastbn.layer_norm(X, 3, **k), "axis", "normalized_shape"),
        (lambda **k: fastbn.layer_norm(X, 3, **k), "scale", "here it is weight"),
        (lambda **k: fastbn.GroupNorm(2, 4, **k), "elementwise_affine", "here it is affine"),
        (lambda **k: fastbn.GroupNorm(2, 4, **k), "groups", "here it is num_groups"),
        (lambda **k: fastbn.GroupNorm(2, 4, **k), "num_features", "here it is num_channels"),
        (lambda **k: fastbn.GroupNorm(2, 4, **k), "dim", "axis=-1"),
        (lambda **k: BatchNorm2d(3, **k), "act", "here it is activation"),
        (lambda **k: BatchNorm2d(3, **k), "nonlinearity", "here it is activation"),
        (lambda **k: fastbn.batch_norm(X, **k), "nonlinearity", "here it is activation"),
        (lambda **k: fastbn.batch_norm(X, **k), "shortcut", "here it is residual"),
        (lambda **k: BatchNorm2d(3, **k), "renorm", "BatchRenorm"),
        (lambda **k: fastbn.BatchRenorm2d(3, **k), "renorm_clipping", "r_max"),
        (lambda **k: fastbn.BatchRenorm2d(3, **k), "renorm_clipping", "d_max"),
        (lambda **k: fastbn.BatchRenorm2d(3, **k), "renorm_momentum", "here it is momentum"),
        (lambda **k: BatchNorm1d(3)(X, **k), "shortcut", "here it is residual"),
        (lambda **k: BatchNorm1d(3)(X, **k), "skip", "here it is residual"),
        (lambda **k: BatchNorm1d(3)(X, **k), "training", "train() or eval()"),
        (lambda **k: BatchNorm1d(3)(X, **k), "inplace", "out=x"),
        (lambda **k: BatchNorm1d(3)(X, **k), "qwerty", "a call of BatchNorm1d has no argument"),
        (lambda **k: fastbn.LayerNorm(3)(X, **k), "residual", "add it to the output"),
        (lambda **k: fastbn.LayerNorm(3)(X, **k), "shortcut", "add it to the output"),
        (lambda **k: fastbn.GroupNorm(1, 3)(X, **k), "mask", "without its padding, x[i:i + 1"),
        (lambda **k: fastbn.group_norm(X, 3, **k), "mask", "without its padding, x[i:i + 1"),
        (lambda **k: fastbn.instance_norm_forward(X, **k), "mask", "without its padding"),
        (lambda **k: fastbn.rms_norm(X, 3, **k), "mask", "over the features alone needs no mask"),
        (lambda **k: fastbn.layer_norm_forward(X, 3, **k), "skip", "add it to the output"),
        (lambda **k: fastbn.RMSNorm(3)(X, **k), "activation", "apply it to the output"),
        (lambda **k: fastbn.InstanceNorm1d(4)(X, **k), "training", "train() or eval()"),
    ],
)  # fmt: skip
def test_whoever_comes_from_elsewhere_is_told(made, name, here):
    with raises(
        TypeError, f"has no argument {name!r}; " if name != "qwerty" else "", here
    ) as caught:
        made(**{name: X})
    for private in ("SampleNorm", "_RowNorm", "__call__", "LayerState"):
        assert private not in str(caught.value)


def test_signatures_are_shown_without_what_serves_errors_alone():
    called = BatchNorm2d.__call__, fastbn.LayerNorm.__call__
    for function in (BatchNorm2d, fastbn.batch_norm, fastbn.channel_stats, *called):
        assert "foreign" not in str(inspect.signature(function))
    assert "dtype: 'DTypeLike | None' = None" in str(inspect.signature(BatchNorm2d))


def test_an_array_in_place_of_the_number_of_channels():
    with raises(TypeError, "got an array of shape (4, 3)", "layer(num_features)(x)") as caught:
        BatchNorm2d(X)
    assert len(str(caught.value)) < 200
