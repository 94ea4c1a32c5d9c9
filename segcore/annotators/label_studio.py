"""What an ML backend for Label Studio answers: the masks of an edition, as predictions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from segcore.annotators.edition_images import Answer, EditionImages, NoAnswer
from segcore.annotators.task_names import name_of_link
from segcore.errors import UsageError
from segcore.exports.formats.base import Tally
from segcore.exports.formats.label_studio import LabelStudio
from segcore.exports.label_studio_config import MaskControl, find_control
from segcore.text import plural, printable

MAX_TASKS = 10_000  # of one request
_LOGGER = logging.getLogger(__name__)
_MAX_SHOWN = 80  # letters of a link


class LabelStudioBackend:
    """Answers requests of Label Studio, whatever the transport. Can be called by several threads.

    Tasks of `segcore export` say which image they are of; others are found by the link of their
    image, see `name_of_link`. A task without an answer gets no prediction; the log says why.

    Attributes:
        counts: Tasks that were answered, and tasks and masks that were not, by reason.
    """

    def __init__(self, images: EditionImages) -> None:
        self._images = images
        context = images.context
        self.model_version = context.model_version
        self.counts: Counter[str] = Counter()
        self._forms = {
            kind: LabelStudio(
                replace(context, options=context.options.model_copy(update={"masks": masks}))
            )
            for kind, masks in (("brush", "exact"), ("polygon", "polygons"))
        }

    def health(self) -> dict[str, Any]:
        """That it runs, and of what it answers."""
        return {
            "status": "UP",
            "model_class": "segcore",
            "model_version": self.model_version,
            "images": len(self._images),
        }

    def versions(self) -> dict[str, Any]:
        """The one that there is."""
        return {"versions": [self.model_version]}

    def setup(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Whether this fits to a project; Label Studio asks when it is connected.

        Raises:
            UsageError: Its labelling configuration takes no masks, or has none of the classes.
        """
        control = self._control(request.get("schema") or request.get("label_config"))
        missing = self._missing_labels(control)
        if len(missing) == len(self._images.context.labels):
            raise UsageError(
                "None of the labels of the project is a class of the model: "
                f"{', '.join(missing[:5])}."
            )
        if missing:
            _LOGGER.warning(
                "The project lacks %s: %s; their masks are left out.",
                plural(len(missing), "label"),
                ", ".join(missing[:10]),
            )
        return {"model_version": self.model_version}

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One prediction for each task.

        Raises:
            UsageError: The request is malformed, or see `setup`.
        """
        tasks = request.get("tasks")
        if not isinstance(tasks, list) or len(tasks) > MAX_TASKS:
            raise UsageError(f"A request has a list of at most {MAX_TASKS:,} tasks.")
        control = self._control(request.get("label_config"))
        problems: list[str] = []
        results = [self._predict_task(task, control, problems) for task in tasks]
        return {"results": results, "model_version": self.model_version, "problems": problems}

    def _control(self, text: Any) -> MaskControl:
        if not isinstance(text, str) or not text.strip():
            raise UsageError("The request has no labelling configuration.")
        return find_control(text, self._images.context.options.masks != "polygons")

    def _missing_labels(self, control: MaskControl) -> list[str]:
        names = (printable(label.name) for label in self._images.context.labels)
        return [name for name in names if name not in control.labels]

    def _predict_task(
        self, task: Any, control: MaskControl, problems: list[str]
    ) -> dict[str, Any] | list[Any]:
        """A prediction, or none: an empty one would say that the image shows nothing."""
        shown = "A task"
        try:
            data = task.get("data") if isinstance(task, dict) else None
            if not isinstance(data, dict):
                raise NoAnswer("it has no data")
            shown = f"Task {printable(str(task.get('id', '')))[:_MAX_SHOWN]}"
            return self._answer(self._find(data, control), control, shown)
        except NoAnswer as reason:
            self.counts["tasks without an answer"] += 1
            problems.append(f"{shown}: {reason}")
            _LOGGER.warning("%s: %s; nothing is predicted.", shown, reason)
            return []

    def _find(self, data: Mapping[str, Any], control: MaskControl) -> Answer:
        image_id = data.get("segcore_image_id")
        if isinstance(image_id, str):
            return self._images.answer_id(image_id)
        link = data.get(control.variable)
        name = name_of_link(link) if isinstance(link, str) else None
        if name is None:
            raise NoAnswer(f"its {control.variable!r} names no image")
        try:
            return self._images.answer(name)
        except NoAnswer as reason:
            raise NoAnswer(f"{printable(name.text)[:_MAX_SHOWN]}: {reason}") from None

    def _answer(self, answer: Answer, control: MaskControl, shown: str) -> dict[str, Any]:
        tally = Tally()
        prediction = self._forms[control.kind].prediction(answer.image, tally)
        result, n_unknown = [], 0
        for region in prediction["result"]:
            kind = region["type"]
            (label,) = region["value"][kind]
            if label not in control.labels:
                n_unknown += 1
                continue
            region["value"][kind] = [control.labels[label]]
            region["from_name"], region["to_name"] = control.from_name, control.to_name
            result.append(region)
        lost = answer.losses(tally)
        if n_unknown:
            lost.append(f"{n_unknown:,} masks of labels that the project lacks left out")
        if lost:
            _LOGGER.warning("%s: %s.", shown, "; ".join(lost))
        self.counts["tasks answered"] += 1
        score = min((region["score"] for region in result), default=0.0)
        return prediction | {"result": result, "score": score}
