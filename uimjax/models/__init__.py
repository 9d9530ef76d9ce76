"""Models ready to train: classifiers."""

from uimjax.models.classifiers import MLP, SmallCNN, build, classifier_task

__all__ = ["MLP", "SmallCNN", "build", "classifier_task"]
