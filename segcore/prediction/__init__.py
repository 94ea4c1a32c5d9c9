"""One image through a model, in a notebook or a terminal.

predictor     a loaded model that takes a path, a link, bytes or pixels
prediction    the instances of one image: masks, boxes, scores, and a picture of them
image_input   whatever stands for an image -> pixels
"""

from segcore.prediction.prediction import Prediction
from segcore.prediction.predictor import Predictor, load_model

__all__ = ["Prediction", "Predictor", "load_model"]
