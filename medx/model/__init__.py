"""Models: fixed features, trainable modules, and the objectives they are trained with."""

from medx.model.base import FixedFeatures, Model, Objective

__all__ = ["FixedFeatures", "Model", "Objective"]
