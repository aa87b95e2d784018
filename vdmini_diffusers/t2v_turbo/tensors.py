"""Tensors under the original names -> tensors under ours, strictly one to one."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor


class OriginalCheckpointError(ValueError):
    """Original weights that cannot be used; the message lists what is wrong with them."""


class Source(NamedTuple):
    """Where a tensor comes from: all of the original one, or a third of its rows (query, key, value in one matrix)."""

    key: str
    third: int | None = None


def axis_size(tensors: Mapping[str, Tensor], network: str, key: str, axis: int) -> int:
    """A size that the config is made of.

    Raises:
        OriginalCheckpointError: if the tensor by which it is known is missing, or has no such axis.
    """
    if key not in tensors:
        raise OriginalCheckpointError(
            f"This is no {network}: it has no {key!r}, but {len(tensors)} tensors such as"
            f" {', '.join(sorted(tensors)[:3])}."
        )
    if tensors[key].ndim <= axis:
        raise OriginalCheckpointError(f"This is no {network}: {key!r} has the shape {list(tensors[key].shape)}.")
    return tensors[key].shape[axis]


def convert_tensors(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    source_of: Callable[[str], Source],
    ignored: Collection[str] = (),
    network: str = "network",
) -> dict[str, Tensor]:
    """`{our name: tensor}` for every name in `shapes`; views of the original tensors where possible.

    Args:
        shapes: ours. An original may have further axes of length 1 at its end (a convolution that became a linear
            layer), and no other difference.
        ignored: original names that need not be used.

    Raises:
        OriginalCheckpointError: if tensors are missing, left over, of other shapes or no floating point; all of them
            are listed.
    """
    sources = {name: source_of(name) for name in shapes}
    wanted = {source.key for source in sources.values()}
    problems = [
        f"{len(keys)} {kind}: {', '.join(sorted(keys))}"
        for kind, keys in (
            ("missing", wanted - tensors.keys()),
            ("unknown", tensors.keys() - wanted - set(ignored)),
        )
        if keys
    ]
    if problems:
        raise OriginalCheckpointError(f"These are not the tensors of the {network}. {'. '.join(problems)}.")
    converted = {name: _part(tensors[source.key], source.third) for name, source in sources.items()}
    for name, tensor in converted.items():
        shape, rest = tuple(tensor.shape[: len(shapes[name])]), tensor.shape[len(shapes[name]) :]
        if shape != tuple(shapes[name]) or set(rest) - {1}:
            problems.append(f"{sources[name].key} has {list(tensor.shape)}, expected {list(shapes[name])}")
        elif not tensor.is_floating_point():
            problems.append(f"{sources[name].key} is {tensor.dtype}, expected floating point")
    if problems:
        raise OriginalCheckpointError(f"Tensors of the {network} are of another kind: {'; '.join(problems)}.")
    return {name: tensor.reshape(shapes[name]).contiguous() for name, tensor in converted.items()}


def _part(tensor: Tensor, third: int | None) -> Tensor:
    if third is None or tensor.ndim == 0:  # without rows it has another shape, which is said later
        return tensor
    return tensor.tensor_split(3)[third]
