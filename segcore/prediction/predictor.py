"""A loaded model that takes whatever stands for an image."""

from __future__ import annotations

from typing import Any

from segcore.errors import ImageError, UsageError
from segcore.images import DecodeOptions
from segcore.models import registry
from segcore.models.base import Model, ModelInfo, ModelOptions
from segcore.models.torch_runtime import one_thread
from segcore.prediction.image_input import ImageInput, read_image
from segcore.prediction.prediction import Prediction
from segcore.storage import Storage, StorageOptions
from segcore.worker.batching import BatchRunner
from segcore.worker.weights import read_object_weights


class Predictor:
    """A model, ready to take images; `load_model` makes one.

    Results are those of a job with the same options: the same masks to the byte.

    Attributes:
        model: The adapter behind it, see ``docs/models.md``.
    """

    def __init__(
        self, model: Model, decode: DecodeOptions | None = None, storage: Storage | None = None
    ) -> None:
        self.model = model
        self._decode = decode or DecodeOptions()
        self._storage = storage or Storage()
        self._runner = BatchRunner(model)

    @property
    def info(self) -> ModelInfo:
        """What the model is: architecture, classes, licence, thresholds."""
        return self.model.info

    def __repr__(self) -> str:
        return f"Predictor({self.info.name}, {self.info.architecture})"

    def predict(self, image: ImageInput) -> Prediction:
        """Segment one image.

        Args:
            image: A path, a URI (s3://...), a link (https://...), the bytes of an encoded image,
                an array (H, W, 3) uint8 RGB or (H, W) uint8 grey, or a Pillow image.

        Raises:
            UsageError: It is no image, or is damaged.
            StorageError: It cannot be read.
            ImageError: The model failed on it.
        """
        pixels = read_image(image, self._storage, self._decode)
        with one_thread():  # as workers on a CPU do: sums have the same order, masks the same bits
            outcome = self._runner.run([self.model.preprocess(pixels)])[0]
        if isinstance(outcome, ImageError):
            raise outcome
        categories = {category.id: category.name for category in self.info.categories}
        return Prediction(pixels, outcome, categories)


def load_model(
    name: str = "nuclei-yolo11n",
    *,
    decode: DecodeOptions | None = None,
    storage: StorageOptions | None = None,
    **options: Any,
) -> Predictor:
    """Load a model for single images::

        model = segcore.load_model("nuclei-yolo11n", conf=0.4)
        model.predict("photo.jpg").plot()

    Args:
        name: A name that `segcore models` lists; a path or link of a checkpoint, also s3://; a
            folder of Hugging Face transformers; or ``package.module:Class``.
        decode: How images are decoded; as a job does by default.
        storage: How object stores are accessed.
        **options: Those of the section `model` of a job: conf, iou, imgsz, max_det, device, ...

    Raises:
        CheckpointError: There is no such model, or its file cannot be used.
        UsageError: An option is wrong, or the device is not on this machine.
    """
    from pydantic import ValidationError

    try:
        model_options = ModelOptions(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(
            f"load_model: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.",
            f"The options are {', '.join(ModelOptions.model_fields)}.",
        ) from None
    stores = Storage(storage)
    data = read_object_weights(name, stores)
    return Predictor(registry.load_model(name, model_options, data), decode, stores)
