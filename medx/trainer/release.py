"""The release of one step: noise on a clipped sum, through Opacus's optimizer."""

import torch
from opacus.optimizers import DPOptimizer

from medx.privacy.base import SampledGaussian


class GaussianRelease(DPOptimizer):  # type: ignore[misc]
    """Opacus's DPOptimizer for a sum that is already clipped: it adds the noise and divides, and clips nothing.

    Noise and clip norm come from ``step``, the object that is accounted (Abadi et al. 2016, algorithm 1).
    ``expected_batch_size`` is public and does not follow the drawn batch; ``generator`` is on the parameters' device.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        step: SampledGaussian,
        expected_batch_size: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=step.noise_multiplier,
            max_grad_norm=step.clip_norm,
            expected_batch_size=expected_batch_size,
            generator=generator,
        )

    @property
    def accumulated_iterations(self) -> int:
        """Always one: a logical batch arrives as one sum, however many micro-batches it was cut into."""
        return 1

    def release(self, sums: list[torch.Tensor]) -> None:
        """Set every ``p.grad`` to (sum + noise) / expected batch size, in the order of the optimizer's parameters.

        The bits of Opacus's ``add_noise`` and ``scale_grad``, in place: ``sums`` become the gradients.
        """
        stddev = self.noise_multiplier * self.max_grad_norm
        for parameter, total in zip(self.params, sums, strict=True):
            if stddev != 0:
                noise = torch.empty(total.shape, dtype=total.dtype, device=total.device)
                total.add_(noise.normal_(0.0, stddev, generator=self.generator))
            parameter.grad = total.div_(self.expected_batch_size)
