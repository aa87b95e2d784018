"""Plans of video transformers: which of their blocks stay (paper, appendix D)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from vdmini_diffusers.families.block_lists import BLOCK_LISTS
from vdmini_diffusers.pruning.plans.base import PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.plans.block_rules import block_counts, places, student_fields
from vdmini_diffusers.serialization.safetensors_reader import short_repr


class Block(NamedTuple):
    """A block of a teacher.

    Args:
        list_name: of its list.
        number: its place in the list.
        streams: what it returns.
    """

    list_name: str
    number: int
    streams: tuple[str | None, ...]


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
        names = [blocks.name for blocks in BLOCK_LISTS[self.transformer]]
        if unknown := sorted(self.blocks.keys() - set(names)):
            raise PruningPlanError(
                f"A {self.transformer} has the lists of blocks {', '.join(names)}, and no {short_repr(unknown[0])}."
            )

    @classmethod
    def keep_everything(cls, transformer: str, teacher_config: Mapping[str, Any]) -> "TransformerPruningPlan":
        """The plan that removes nothing from a teacher of this class with this config."""
        counts = block_counts(transformer, teacher_config)
        return cls("keep-everything", transformer, {name: tuple(range(count)) for name, count in counts.items()})

    def student_config(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        config = {key: value for key, value in teacher_config.items() if not key.startswith("_")}
        return config | self._student_fields(teacher_config)

    def teacher_key(self, student_key: str) -> str:
        parts = student_key.split(".")
        if parts[0] in self.blocks and len(parts) > 1:
            parts[1] = str(self.blocks[parts[0]][int(parts[1])])
        return ".".join(parts)

    def feature_pairs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Every kept block, with the teacher's last block before the next kept one, whose work it takes over.

        The run that a block takes over can reach into the next list: HunyuanVideo's last dual-stream block answers
        for the removed single-stream blocks after it. Where a block returns several streams, each is a pair:
        `name` is the first, `name[1]` the second, as in `FeatureTaps`. What the last block of a chain returns beside
        video and audio is left out, as nothing reads it.
        """
        self._student_fields(teacher_config)
        pairs = []
        for order in self.running_order(teacher_config).values():
            kept = [place for place, block in enumerate(order) if block.number in self.blocks[block.list_name]]
            for place, following in zip(kept, (*kept[1:], len(order)), strict=True):
                block, end = order[place], order[following - 1]
                student = f"{block.list_name}.{self.blocks[block.list_name].index(block.number)}"
                for stream, name in enumerate(block.streams):
                    is_last = following == len(order) and len(block.streams) > 1
                    if name is None or (is_last and name not in ("video", "audio")):
                        continue
                    suffix = f"[{stream}]" if stream else ""
                    pairs.append((f"{student}{suffix}", f"{end.list_name}.{end.number}{suffix}"))
        return tuple(pairs)

    def removed_runs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
        """The names of removed blocks that run directly one after the other, run by run."""
        self._student_fields(teacher_config)
        runs: list[list[str]] = []
        for order in self.running_order(teacher_config).values():
            kept = True
            for block in order:
                if block.number in self.blocks[block.list_name]:
                    kept = True
                    continue
                runs += [[]] if kept else []
                runs[-1].append(f"{block.list_name}.{block.number}")
                kept = False
        return tuple(map(tuple, runs))

    def running_order(self, teacher_config: Mapping[str, Any]) -> dict[str, list[Block]]:
        """All blocks of a teacher that pass on what they are given, by chain, in the order in which they run.

        Raises:
            PruningPlanError: if the config does not say how many there are.
        """
        counts = block_counts(self.transformer, teacher_config)
        lists = [blocks for blocks in BLOCK_LISTS[self.transformer] if blocks.name in counts]
        chains: dict[str, list[tuple[tuple[int, ...], Block]]] = {}
        for number, blocks in enumerate(lists):
            if not any(blocks.streams) and not any(other.attached_to == blocks.name for other in lists):
                continue
            count = counts[blocks.name]
            trailing = teacher_config.get(blocks.trailing or "", 0)
            at = range(count)
            if blocks.attached_to:
                at = places(blocks, teacher_config, count)
            beside = [other.name for other in lists].index(blocks.attached_to) if blocks.attached_to else number
            for i in range(count):
                in_tail = i >= count - trailing
                chain = f"end of {blocks.name}" if in_tail else blocks.chain
                streams = blocks.trailing_streams if in_tail else blocks.streams
                chains.setdefault(chain, []).append(((beside, at[i], number), Block(blocks.name, i, streams)))
        return {chain: [block for _, block in sorted(found)] for chain, found in chains.items()}

    def block_names(self, teacher_key: str) -> Sequence[str]:
        return (".".join(teacher_key.split(".")[:2]),)

    def _student_fields(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        """The config fields in which the student differs.

        Raises:
            PruningPlanError: with the first block that the teacher does not have, or cannot lose.
        """
        class_name = teacher_config.get("_class_name", self.transformer)
        if class_name != self.transformer:
            raise PruningPlanError(
                f"{self.name!r} is a plan for {self.transformer}, and the teacher is a {short_repr(class_name)}."
            )
        counts = block_counts(self.transformer, teacher_config)
        if missing := sorted(counts.keys() ^ self.blocks.keys()):
            what = "has, and the plan keeps none of it" if missing[0] in counts else "does not have"
            raise PruningPlanError(f"{self.name!r} says what is kept of each list: {missing[0]!r} the teacher {what}.")
        fields: dict[str, Any] = {}
        for blocks in BLOCK_LISTS[self.transformer]:
            if blocks.name not in counts:
                continue
            kept, beside = self.blocks[blocks.name], self.blocks.get(blocks.attached_to or "", ())
            found = student_fields(blocks, kept, beside, teacher_config, counts[blocks.name])
            if clash := [field for field in fields.keys() & found.keys() if fields[field] != found[field]]:
                raise PruningPlanError(
                    f"`{clash[0]}` counts more than one list of a {self.transformer}, and the plan keeps"
                    f" {fields[clash[0]]} blocks of one and {found[clash[0]]} of {blocks.name}: keep equally many."
                )
            fields |= found
        return fields
