"""Plans of video transformers: which of their blocks stay (paper, appendix D)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vdmini_diffusers.families.block_lists import BLOCK_LISTS, BlockList
from vdmini_diffusers.pruning.plans.base import PruningPlan, PruningPlanError
from vdmini_diffusers.serialization.safetensors_reader import short_repr


@dataclass(frozen=True, eq=True)
class TransformerPruningPlan(PruningPlan):
    """Kept blocks of a transformer, per list of blocks.

    Args:
        transformer: the teacher's class in diffusers, e.g. `"HunyuanVideoTransformer3DModel"`.
        blocks: kept indices by the name of the teacher's `ModuleList`, e.g. `{"transformer_blocks": (0, 1, 19),
            "single_transformer_blocks": (0, 39)}` for HunyuanVideo's dual-stream and single-stream blocks.
    """

    transformer: str
    blocks: Mapping[str, tuple[int, ...]]

    kind: ClassVar[str] = "transformer"
    network: ClassVar[str] = "transformer"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        self._freeze_kept("blocks", str)
        if not isinstance(self.transformer, str) or self.transformer not in BLOCK_LISTS:
            raise PruningPlanError(
                f"`transformer` names a class of diffusers, not {short_repr(self.transformer)}; those that can be"
                f" pruned are {', '.join(BLOCK_LISTS)}."
            )
        names = {blocks.name for blocks in self._lists}
        if wrong := sorted(names ^ self.blocks.keys()):
            raise PruningPlanError(
                f"`blocks` of a plan for {self.transformer} says what is kept of {' and of '.join(sorted(names))};"
                f" {wrong[0]!r} is {'missing' if wrong[0] in names else 'none of them'}."
            )

    @classmethod
    def keep_everything(cls, transformer: str, teacher_config: Mapping[str, Any]) -> "TransformerPruningPlan":
        """The plan that removes nothing from a teacher of this class with this config."""
        counts = block_counts(transformer, teacher_config)
        return cls("keep-everything", transformer, {name: tuple(range(count)) for name, count in counts.items()})

    def student_config(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        self._check_fits(teacher_config)
        config = {key: value for key, value in teacher_config.items() if not key.startswith("_")}
        return config | {blocks.count: len(self.blocks[blocks.name]) for blocks in self._lists}

    def teacher_key(self, student_key: str) -> str:
        parts = student_key.split(".")
        if parts[0] in self.blocks and len(parts) > 1:
            parts[1] = str(self.blocks[parts[0]][int(parts[1])])
        return ".".join(parts)

    def feature_pairs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Every kept block, with the teacher's last block before the next kept one, whose work it takes over.

        The run that a block takes over can reach into the next list: HunyuanVideo's last dual-stream block answers
        for the removed single-stream blocks after it. Where a block returns several streams, each is a pair:
        `name` is the first, `name[1]` the second, as in `FeatureTaps`. Text after the last block is left out, as
        nothing reads it.
        """
        self._check_fits(teacher_config)
        counts = block_counts(self.transformer, teacher_config)
        pairs = []
        for chain in dict.fromkeys(blocks.chain for blocks in self._lists):
            lists = [blocks for blocks in self._lists if blocks.chain == chain]
            order = [(blocks, i) for blocks in lists for i in range(counts[blocks.name])]
            kept = [place for place, (blocks, i) in enumerate(order) if i in self.blocks[blocks.name]]
            for place, following in zip(kept, (*kept[1:], len(order)), strict=True):
                (blocks, i), (end_blocks, end) = order[place], order[following - 1]
                student = f"{blocks.name}.{self.blocks[blocks.name].index(i)}"
                for stream, name in enumerate(blocks.streams):
                    if name == "text" and following == len(order):
                        continue
                    suffix = f"[{stream}]" if stream else ""
                    pairs.append((f"{student}{suffix}", f"{end_blocks.name}.{end}{suffix}"))
        return tuple(pairs)

    def block_names(self, teacher_key: str) -> Sequence[str]:
        return (".".join(teacher_key.split(".")[:2]),)

    @property
    def _lists(self) -> tuple[BlockList, ...]:
        return BLOCK_LISTS[self.transformer]

    def _check_fits(self, teacher_config: Mapping[str, Any]) -> None:
        """Raises `PruningPlanError` with the first block that the teacher does not have."""
        class_name = teacher_config.get("_class_name", self.transformer)
        if class_name != self.transformer:
            raise PruningPlanError(
                f"{self.name!r} is a plan for {self.transformer}, and the teacher is a {short_repr(class_name)}."
            )
        for name, count in block_counts(self.transformer, teacher_config).items():
            if self.blocks[name][-1] >= count:
                raise PruningPlanError(
                    f"The plan keeps {name}.{self.blocks[name][-1]}; the teacher's {name} has {count} blocks, which"
                    " are counted from 0."
                )


def block_counts(transformer: str, config: Mapping[str, Any]) -> dict[str, int]:
    """The number of blocks in each list of a transformer, given its class and its config.

    Raises:
        PruningPlanError: if the config does not say.
    """
    counts = {}
    for blocks in BLOCK_LISTS[transformer]:
        count = config.get(blocks.count)
        if type(count) is not int or count < 1:
            raise PruningPlanError(
                f"The config of a {transformer} counts its {blocks.name} by `{blocks.count}`; this one says"
                f" {short_repr(count)}."
            )
        counts[blocks.name] = count
    return counts
