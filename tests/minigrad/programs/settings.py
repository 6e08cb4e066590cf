"""What steps in other modules read."""

import minigrad as mg

scale = 0.5
factor = 0.5


def loss(prediction, target):
    return mg.mse(prediction, target) * factor
