"""Fixed features on a public basis: what scattering and public networks share."""

import hashlib

import torch
from torch.nn import functional

from medx.model import FixedFeatures
from medx.model.storage import source_digest, tensors_digest

CODE = source_digest(__file__)


class ProjectedFeatures(FixedFeatures):
    """``raw`` features ``[n, num_raw]`` less ``centre``, on ``basis``, times ``scales``, at l2 norm 1; then ``bias``.

    The three are buffers, so that a saved state needs nothing else, and unset until loaded; with 0 components there
    are none, and raw features go on as they are. The constant ``bias`` comes last: the norm of all is
    ``sqrt(1 + bias**2)``.
    """

    centre: torch.Tensor
    basis: torch.Tensor
    scales: torch.Tensor

    def __init__(self, raw: FixedFeatures, num_raw: int, num_components: int, bias: float) -> None:
        super().__init__()
        self.raw, self.num_raw, self.num_components, self.bias = raw, num_raw, num_components, bias
        if num_components:
            self.register_buffer("centre", torch.zeros(num_raw))
            self.register_buffer("basis", torch.zeros(num_raw, num_components, dtype=torch.float16))
            self.register_buffer("scales", torch.zeros(num_components))

    @property
    def parts(self) -> tuple[FixedFeatures, ...]:
        """The raw features."""
        return (self.raw,)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the raw features, this code, the basis and the constant."""
        own = {name: getattr(self, name) for name in ("centre", "basis", "scales") if self.num_components}
        named = f"{CODE} {self.raw.fingerprint} {self.num_components} {self.bias} {tensors_digest(own)}"
        return hashlib.sha256(named.encode()).hexdigest()

    def joined(self, *outputs: torch.Tensor) -> torch.Tensor:
        """Raw features ``[n, num_raw]`` to ``[n, (num_components or num_raw) + 1]``."""
        return functional.pad(self.projected(*outputs), (0, 1), value=self.bias)

    def projected(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw features ``[n, num_raw]`` to ``[n, num_components or num_raw]`` of norm one."""
        if self.num_components:
            raw = (raw - self.centre) @ self.basis.float() * self.scales
        return functional.normalize(raw)
