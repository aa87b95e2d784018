"""When a rewritten forward pass may stand in for the stock one.

Each rewrite reads the original parameters in every call and keeps nothing derived from them, so no weight can be
stale: deriving costs as much as one position of a convolution or less, and a frame has hundreds.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks
from torch.utils.module_tracker import ModuleTracker


class Rewrite:
    """Base of the classes that `optimize` gives to modules: each subclasses a stock class too and adds no state.

    Its forward pass computes where the module is one that it replaces; else that of the stock class does. Hooks that
    offload layers keep a bound forward pass: called after `restore`, it is the stock one.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        rewritten = vars(cls).get("forward")
        if rewritten is None:
            return

        @functools.wraps(rewritten)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(self, cls):
                return type(self).forward(self, *args, **kwargs)
            if not self.replaces():  # attributes were changed, or an adapter makes layers of its base's class
                return super(cls, self).forward(*args, **kwargs)
            return rewritten(self, *args, **kwargs)

        cls.forward = forward

    def replaces(self: Any) -> bool:
        """Whether a module of the stock class, with its attributes of now, computes what the rewrite does."""
        return True


def is_inference(*modules: nn.Module) -> bool:
    """No derivatives, no autocast, no `torch.func`, and nothing that watches or replaces what is inside `modules`.

    A rewrite works in place, passes by children and reads their weights; hooks (feature taps, offloading of single
    layers), compiled children and forward passes that were put in a child's place would be missed. Hooks of `modules`
    themselves do not matter: what is called is still the module.
    """
    autocast = torch._C._is_any_autocast_enabled() or torch.is_autocast_enabled("mps")  # of which the former is silent
    if torch.is_grad_enabled() or autocast or has_global_hooks():
        return False
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():  # also under `no_grad`
        return False
    return not any(is_watched(child) for module in modules for child in module.modules() if child is not module)


def has_global_hooks() -> bool:
    """Hooks of all modules, except those that only note which module runs, as torch's counter of FLOPs has."""
    hooks = (*module_hooks._global_forward_pre_hooks.values(), *module_hooks._global_forward_hooks.values())
    return not all(isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)


def is_watched(module: nn.Module) -> bool:
    replaced = has_other_forward(module) or module._compiled_call_impl is not None
    return bool(module._forward_hooks or module._forward_pre_hooks or replaced)


def has_other_forward(module: nn.Module) -> bool:
    """Than that of its class, which hooks of accelerate and diffusers leave in the module when they are removed."""
    forward = vars(module).get("forward")
    if forward is None:
        return False
    of_module = getattr(forward, "__self__", None) is module
    return not of_module or forward.__func__ not in [vars(cls).get("forward") for cls in type(module).__mro__]


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """One of `kinds` (no subclass, hence no adapter) whose call is its forward pass and whose weight is dense."""
    weight = getattr(module, "weight", None)
    return type(module) in kinds and not is_watched(module) and (weight is None or type(weight) is nn.Parameter)


def is_full_precision_on_cpu(x: torch.Tensor) -> bool:
    """Where sums of weights and of partial products stay as exact as the stock convolution's, and were measured."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
