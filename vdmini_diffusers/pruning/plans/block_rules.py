"""What the kept blocks of one list mean for a student's config, and why some choices fit no student."""

from collections.abc import Mapping, Sequence
from typing import Any

from vdmini_diffusers.families.block_lists import BLOCK_LISTS, BlockList, Period
from vdmini_diffusers.pruning.plans.base import PruningPlanError
from vdmini_diffusers.serialization.safetensors_reader import short_repr


Config = Mapping[str, Any]


def block_counts(transformer: str, config: Config) -> dict[str, int]:
    """The number of blocks in each list of a transformer, given its class and its config. Empty lists are left out.

    Raises:
        PruningPlanError: if the config does not say.
    """
    counts = {}
    for blocks in BLOCK_LISTS[transformer]:
        if blocks.needs and not config.get(blocks.needs):
            continue
        count = config.get(blocks.count)
        if isinstance(count, (list, tuple)):
            count = len(count)
        elif isinstance(every := config.get(blocks.places or ""), int) and every > 0 and isinstance(count, int):
            count //= every
        if type(count) is not int or count < 0:
            raise PruningPlanError(
                f"The config of a {transformer} counts its {blocks.name} by `{blocks.count}`; this one says"
                f" {short_repr(count)}."
            )
        if count:
            counts[blocks.name] = count
    return counts


def places(blocks: BlockList, config: Config, count: int) -> tuple[int, ...]:
    """After which blocks of the list that it is attached to those of a list run.

    Raises:
        PruningPlanError: if the config's are no indices that rise.
    """
    value = config.get(blocks.places or "", 1)
    if type(value) is int and value > 0:
        return tuple(range(0, value * count, value))
    indices = value if isinstance(value, (list, tuple)) else ()
    if not indices or not all(type(i) is int and i >= 0 for i in indices) or len(set(indices)) < len(indices):
        raise PruningPlanError(f"`{blocks.places}` lists indices of {blocks.attached_to}, not {short_repr(value)}.")
    return tuple(sorted(indices))  # in whatever order they are listed, the class goes by that of the blocks


def student_fields(
    blocks: BlockList, kept: Sequence[int], kept_beside: Sequence[int], config: Config, count: int
) -> dict[str, Any]:
    """The config fields of a student that keeps `kept` of the teacher's `count` blocks.

    Args:
        kept_beside: what is kept of the list that this one is attached to, if it is.

    Raises:
        PruningPlanError: with the block that cannot be kept or removed as the plan says.
    """
    if kept[-1] >= count:
        raise PruningPlanError(
            f"The plan keeps {blocks.name}.{kept[-1]}; the teacher's {blocks.name} has {count} blocks, which are"
            " counted from 0."
        )
    for i in blocks.never_remove:
        if i % count not in kept:
            raise PruningPlanError(f"{blocks.name}.{i % count} differs from all other blocks, and cannot be removed.")
    for i in blocks.in_place:
        if i < count and (i >= len(kept) or kept[i] != i):
            raise PruningPlanError(
                f"The code of the class gives block {i} of {blocks.name} a part of its own by its index: it and all"
                " before it must stay."
            )
    fields: dict[str, Any] = {}
    if blocks.attached_to is not None:
        fields |= _attached_fields(blocks, kept, kept_beside, config, count)
    if type(config.get(blocks.count)) is int:
        fields[blocks.count] = len(kept_beside) if blocks.attached_to else len(kept)
    for field in blocks.leading:
        if 0 <= config.get(field, -1) < count:
            fields[field] = sum(i < config[field] for i in kept)
    if blocks.trailing and config.get(blocks.trailing):
        fields |= _trailing_field(blocks.name, blocks.trailing, kept, config[blocks.trailing], count)
    if blocks.period and config.get(blocks.period.field):
        fields |= _period_field(blocks.name, blocks.period, kept, config[blocks.period.field], count)
    return fields


def _trailing_field(name: str, field: str, kept: Sequence[int], num_trailing: int, count: int) -> dict[str, int]:
    num_kept = sum(i >= count - num_trailing for i in kept)
    if not num_kept:
        raise PruningPlanError(
            f"The last {num_trailing} of {name} (`{field}`) are a stage of their own; the plan removes them all, and"
            " at least one must stay."
        )
    return {field: num_kept}


def _period_field(name: str, period: Period, kept: Sequence[int], n: int, count: int) -> dict[str, int]:
    differ = [i for i in range(count) if (i + period.last) % n == 0]
    what = f"Every {n}th block of {name} (`{period.field}`) {period.difference}"
    if not period.removable and (removed := [i for i in differ if i not in kept]):
        raise PruningPlanError(f"{what}: {name}.{removed[0]} cannot be removed.")
    positions = [kept.index(i) for i in differ if i in kept]
    found = _find_period(n, positions, len(kept), period.last)
    if found is None:
        raise PruningPlanError(f"{what}; in the student the blocks {positions} would, which are not every n-th.")
    return {period.field: found}


def _attached_fields(
    blocks: BlockList, kept: Sequence[int], kept_beside: Sequence[int], config: Config, count: int
) -> dict[str, Any]:
    at = places(blocks, config, count)
    beside = blocks.attached_to
    if lost := [i for i in kept if at[i] not in kept_beside]:
        raise PruningPlanError(
            f"{blocks.name}.{lost[0]} works after {beside}.{at[lost[0]]}, which the plan removes: remove both or"
            " neither."
        )
    value = config.get(blocks.places or "", 1)
    positions = [kept_beside.index(at[i]) for i in kept]
    if blocks.places and isinstance(value, (list, tuple)):
        return {blocks.places: positions}
    if lonely := [i for i in range(count) if at[i] in kept_beside and i not in kept]:
        raise PruningPlanError(
            f"{beside}.{at[lonely[0]]} needs {blocks.name}.{lonely[0]}, which the plan removes: remove both or"
            " neither."
        )
    if blocks.places is None:
        return {}
    every = _find_period(value, positions, len(kept_beside), num_modules=len(kept))
    if every is None:
        raise PruningPlanError(
            f"{blocks.name} works after every n-th block of {beside} (`{blocks.places}`), in the teacher after every"
            f" {value}th; in the student it would after {positions} of {len(kept_beside)}, which are not every n-th."
        )
    return {blocks.places: every}


def _find_period(
    n: int, positions: Sequence[int], length: int, last: bool = False, num_modules: int | None = None
) -> int | None:
    """The period, `n` where it is possible, with which the blocks at `positions` of `length` differ; 0 for none.

    Args:
        num_modules: the number of modules beside them, of which the class makes one for every whole period.
    """
    for period in (n, *range(1, length + 1)):
        found = [i for i in range(length) if (i + last) % period == 0]
        if found == list(positions) and num_modules in (None, length // period):
            return period
    return None if positions else 0
