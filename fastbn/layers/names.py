"""What the arrays of a batch norm are called: by torch, whose names are fastbn's, and elsewhere."""

WEIGHT, BIAS, MEAN, VAR = "weight", "bias", "running_mean", "running_var"
COUNTER = "num_batches_tracked"
#: In the order of torch's state dicts.
TORCH = (WEIGHT, BIAS, MEAN, VAR, COUNTER)
#: Keras, and whoever took its names.
KERAS = {"gamma": WEIGHT, "beta": BIAS, "moving_mean": MEAN, "moving_variance": VAR}
#: Gluon of MXNet, which has torch's names for the running statistics.
GLUON = {"gamma": WEIGHT, "beta": BIAS, MEAN: MEAN, VAR: VAR}
