"""Public networks by name, and up to one of their layers; weights come from files, never from the network."""

from importlib import import_module
from typing import NoReturn

import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from medx.hints import nearest
from medx.model.efficientnet_lite import EfficientNetLite0, SameConv2d
from medx.model.weights import PACKAGED
from medx.schema import ConfigError

TIMM = "timm/"
TRACING = {"leaf_modules": [SameConv2d]}  # its padding follows from the size of what it gets


def check_name(name: str) -> None:
    """Raise ConfigError for a network that nobody here has."""
    known = [*PACKAGED, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known and not name.startswith(TIMM):
        raise ConfigError(
            f"model.backbone={name}: {nearest(name, known)} (of torchvision.models), or timm/NAME with the extra timm"
        )


def library_of(name: str) -> str:
    """Whose network it is, in which version."""
    if name in PACKAGED:
        return "medx"
    library = import_module("timm") if name.startswith(TIMM) else torchvision
    return f"{library.__name__} {library.__version__}"


def network_of(name: str) -> nn.Module:
    """The network of that name, its weights drawn; raises ConfigError where it cannot be built."""
    if name in PACKAGED:
        return EfficientNetLite0()
    if not name.startswith(TIMM):
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, **more)
    try:
        timm = import_module("timm")
        network: nn.Module = timm.create_model(name.removeprefix(TIMM), pretrained=False)
    except ImportError as error:
        raise ConfigError(f"model.backbone={name}: needs timm; accepted: pip install 'medx[timm]'") from error
    except RuntimeError as error:
        raise ConfigError(
            f"model.backbone={name}: {str(error).splitlines()[0]}; accepted: timm.list_models()"
        ) from None
    return network


def up_to(network: nn.Module, name: str, layer: str | None) -> nn.Module:
    """The network up to a layer, by torchvision's names of its nodes, without what only later ones need."""

    def refuse(why: str, accepted: str) -> NoReturn:
        raise ConfigError(f"model.layer={'null' if layer is None else layer}: {why}; accepted: {accepted}")

    try:
        nodes = get_graph_node_names(network, TRACING, suppress_diff_warning=True)[1][1:]
    except Exception as error:  # whatever a network does that cannot be traced
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"model.backbone={name}: its layers cannot be told apart ({said}); accepted: another"
        ) from error
    if layer is None:
        linear = {path for path, module in network.named_modules() if isinstance(module, nn.Linear)}
        last = max((place for place, node in enumerate(nodes) if node in linear), default=0)
        if not last:
            refuse(f"{name} has no linear layer at its end", ", ".join(nodes[-5:]))
        layer = nodes[last - 1]
    elif not any(node == layer or node.startswith(f"{layer}.") for node in nodes):
        refuse(f"{name} has no such layer", nearest(layer, nodes))
    return create_feature_extractor(network, {layer: "found"}, tracer_kwargs=TRACING, suppress_diff_warning=True)
