"""What models share that train the whole network on images."""

from medx.dataset import InputSpec
from medx.model.base import FixedFeatures, Objective
from medx.model.objectives import objective_for


class WholeNetwork:
    """A model without fixed features, whose objective follows from the task."""

    def objective(self, spec: InputSpec) -> Objective:
        """The loss and the probabilities for this task."""
        return objective_for(spec)

    def features(self, spec: InputSpec) -> FixedFeatures | None:
        """None: images go straight into the network."""
        return None

    def empty_features(self, spec: InputSpec) -> FixedFeatures | None:
        """None: there is no saved transform to load."""
        return None
