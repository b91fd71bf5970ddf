"""The model of a run, tried before anything is trained: whether it fits the data, can be private, and can be saved."""

import torch

from medx.federation.setup import Job, Prepared, build_module
from medx.model.export import check_export, check_outputs
from medx.privacy.preflight import check_independence, check_module, perturbed
from medx.trainer.gradients import try_mode


def check_model(job: Job, prepared: Prepared) -> None:
    """Refuse a model that does not fit, could not be saved, or cannot be private, before any training."""
    module, splits = build_module(job.setup, prepared), prepared.splits
    trainer, seen = job.setup.trainer, prepared.inputs["validation"][:2]
    inputs = torch.cat((seen, -seen))  # independence needs two records, of which some validation splits have one
    check_module(module, job.plan.private)
    check_outputs(module, prepared.objective, inputs)
    images = splits.to_tensor(splits.validation.images[:2])
    check_export(job.setup.model, splits, prepared.features, perturbed(module).float(), images)
    if job.plan.private:
        check_independence(module, prepared.objective, inputs)
    if any(plan.step is not None for plan in job.plan.clients):
        try_mode(
            trainer.gradient_mode,
            module,
            prepared.objective,
            views=trainer.augmentation_multiplicity,
            shape=inputs.shape[1:],
            num_classes=prepared.spec.num_classes,
        )
