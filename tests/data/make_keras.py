"""Make the Keras files of the tests, with Keras 3 and with Keras 2.

    pip install keras jax && KERAS_BACKEND=jax python tests/data/make_keras.py keras
    pip install tensorflow-cpu tf_keras && python tests/data/make_keras.py tf_keras

Into keras.zip and tf_keras.zip. ``model.*`` are files of a model with arguments of its own,
``plain.*`` of the same network with Keras's defaults, for files of weights have no arguments. The
.npz beside them have ``x`` and ``y`` of the network in evaluation, and input and output of each
batch norm, as ``NAME.x`` and ``NAME.y``.
"""

import importlib
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np


def network(keras, own):
    """All kinds of batch norm if ``own``, else with all their arrays and default arguments."""
    layers = keras.layers

    def norm(name, **options):
        return layers.BatchNormalization(name=name, **(options if own else {}))

    x = start = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = norm("first", epsilon=0.01, momentum=0.9)(x)
    x = layers.ReLU()(x)
    inner = [layers.DepthwiseConv2D(3, name="depthwise"), norm("inner", scale=False)]
    x = keras.Sequential([keras.Input((6, 6, 4)), *inner], name="block")(x)
    x = layers.Reshape((16, 4))(x)
    x = layers.Conv1D(5, 3, name="sequence")(x)
    x = norm("along", center=False)(x)
    if own:
        x = norm("rows", axis=1)(x)
    x = layers.Dense(3, name="dense")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(start, norm("last", center=False, scale=False)(x)), inner


def evaluate(model, inner, rng):
    """Random values everywhere; what each batch norm takes and gives."""
    norms = [x for x in model.layers if type(x).__name__ == "BatchNormalization"] + inner[1:]
    for norm in norms:
        norm.set_weights([rng.uniform(0.5, 1.5, w.shape).astype("f") for w in norm.get_weights()])
    values = {}
    for norm in norms:
        norm.call = recording(norm.call, norm.name, values)
    x = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    values |= {"x": x, "y": np.asarray(model(x, training=False))}
    for norm in norms:
        del norm.call
    return values


def recording(call, name, values):
    def record(x, *args, **kwargs):
        y = call(x, *args, **kwargs)
        values.update({f"{name}.x": np.asarray(x), f"{name}.y": np.asarray(y)})
        return y

    return record


def main(framework):
    keras, rng = importlib.import_module(framework), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, own in {"model": True, "plain": False}.items():
            model, inner = network(keras, own)
            np.savez(f"{folder}/{name}.npz", **evaluate(model, inner, rng))
            model.get_layer("first").trainable = False  # which changes the order in HDF5
            if own:
                model.save(f"{folder}/{name}.keras")
                model.save(f"{folder}/{name}.h5")
            else:
                model.save_weights(f"{folder}/{name}.weights.h5")
                if framework == "tf_keras":
                    model.save_weights(f"{folder}/{name}.h5")
        target = Path(__file__).parent / f"{framework}.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, file.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
