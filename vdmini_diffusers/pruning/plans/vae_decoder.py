"""Plans of VAE decoders: which layers stay, and how wide (paper, appendix A)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vdmini_diffusers.pruning.plans.base import PruningPlan, PruningPlanError


@dataclass(frozen=True)
class CoupledChannels:
    """Channels that stay or go together.

    Args:
        layers: names of the decoder's layers that these are output channels of.
        kept: their indices, in the decoder before channel pruning.
    """

    layers: tuple[str, ...]
    kept: tuple[int, ...]


def channels_json(coupled: Sequence[CoupledChannels]) -> str:
    """For `pruning_channels.json`: one line for each set of coupled channels."""
    lines = (json.dumps({"layers": channels.layers, "kept": channels.kept}) for channels in coupled)
    return "[\n  " + ",\n  ".join(lines) + "\n]\n"


@dataclass(frozen=True, eq=True)
class DecoderPruningPlan(PruningPlan):
    """Kept layers and widths of a VAE's decoder (appendix A): layers are removed first, then channels.

    Args:
        mid: kept ResBlocks of the mid block; empty if none is.
        keep_mid_attention: whether the attention between them stays; only with both.
        up: kept ResBlocks of each up block. No up block can go, as each doubles the resolution.
        widths: channels of each up block; the first number is the mid block's as well. Which ones stay is found by
            importance.
        upsampler_widths: channels that each upsampler hands over; the last up block has none.
    """

    mid: tuple[int, ...]
    keep_mid_attention: bool
    up: Mapping[int, tuple[int, ...]]
    widths: tuple[int, ...]
    upsampler_widths: tuple[int, ...]

    kind: ClassVar[str] = "vae_decoder"
    network: ClassVar[str] = "VAE"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        self._freeze_numbers("mid", least=0)
        if self.mid not in ((), (0,), (1,), (0, 1)):
            raise PruningPlanError(f"`mid` keeps at most ResBlocks 0 and 1, which are all that run; got {self.mid}.")
        if not isinstance(self.keep_mid_attention, bool):
            raise PruningPlanError(f"`keep_mid_attention` is true or false, not {self.keep_mid_attention!r}.")
        if self.keep_mid_attention and self.mid != (0, 1):
            raise PruningPlanError("The attention in the mid block runs between its two ResBlocks: keep both or none.")
        self._freeze_kept("up", int)
        self._freeze_numbers("widths", least=1)
        self._freeze_numbers("upsampler_widths", least=1)
        num_stages = len(self.up)
        if tuple(self.up) != tuple(range(num_stages)):
            raise PruningPlanError(f"`up` names every up block from 0; got {list(self.up)}.")
        if (len(self.widths), len(self.upsampler_widths)) != (num_stages, num_stages - 1):
            raise PruningPlanError(
                f"{num_stages} up blocks have {num_stages} `widths` and {num_stages - 1} `upsampler_widths`; got"
                f" {self.widths} and {self.upsampler_widths}."
            )

    @classmethod
    def keep_everything(cls, vae_config: Mapping[str, Any]) -> "DecoderPruningPlan":
        """The plan that removes only what never runs: attention beside a single ResBlock, and a third ResBlock."""
        widths = stage_widths(vae_config)
        # `AutoencoderKL` has two ResBlocks in its mid block, whatever its `layers_per_block`.
        num_mid = 2 if "norm_num_groups" in vae_config else min(vae_config["layers_per_block"], 2)
        return cls(
            name="keep-everything",
            mid=tuple(range(num_mid)),
            keep_mid_attention=num_mid == 2 and vae_config.get("mid_block_add_attention", True),
            up={i: tuple(range(vae_config["layers_per_block"] + 1)) for i in range(len(widths))},
            widths=widths,
            upsampler_widths=widths[:-1],
        )

    def student_config(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the VAE with the pruned decoder; `teacher_config` is that of the stock VAE."""
        self._check_fits(teacher_config)
        config = {key: value for key, value in teacher_config.items() if not key.startswith("_")}
        # Configs count from the highest resolution, plans from the first up block.
        config["decoder_block_out_channels"] = self.widths[::-1]
        config["decoder_layers_per_block"] = tuple(len(layers) for layers in self.up.values())[::-1]
        config["decoder_upsample_out_channels"] = self.upsampler_widths[::-1]
        config["decoder_mid_layers"] = len(self.mid)
        config["decoder_mid_attention"] = self.keep_mid_attention
        return config

    def teacher_key(self, student_key: str) -> str:
        parts = student_key.split(".")
        if parts[:2] == ["decoder", "up_blocks"] and parts[3] == "resnets":
            parts[4] = str(self.up[int(parts[2])][int(parts[4])])
        elif parts[:3] == ["decoder", "mid_block", "resnets"]:
            parts[3] = str(self.mid[int(parts[3])])
        return ".".join(parts)

    def feature_pairs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """The mid block and each up block, by their names in the two decoders; see `stage_pairs` for channels."""
        return tuple((student, teacher) for student, teacher, _ in self._stages(teacher_config))

    def stage_pairs(
        self, teacher_config: Mapping[str, Any], coupled: Sequence[CoupledChannels]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """The `feature_pairs`, each with the channels of the teacher's module that the student's kept.

        A stage's output is that of a layer whose channels `coupled` lists. Where a shortcut was folded into the
        upsampler before it, the student's upsampler does the work of both: its output is the teacher's shortcut's.

        Args:
            coupled: returned by `prune_channels`, and stored in `pruning_channels.json`.

        Raises:
            PruningPlanError: if the plan does not fit the teacher.
            ValueError: if `coupled` does not belong to a decoder that the plan makes.
        """
        kept = {layer: channels.kept for channels in coupled for layer in channels.layers}
        stages = self._stages(teacher_config)
        widths = (self.widths[0], *self.upsampler_widths, self.widths[-1])
        for (stage, _, layer), width in zip(stages, widths, strict=True):
            if len(kept.get(layer, ())) != width:
                raise ValueError(
                    f"`pruning_channels.json` keeps {len(kept.get(layer, ()))} channels of {layer}, and the plan"
                    f" {self.name!r} {width} of {stage}: the two are not of the same pruning."
                )
        return tuple((student, teacher, kept[layer]) for student, teacher, layer in stages)

    def block_names(self, teacher_key: str) -> Sequence[str]:
        """Names within the decoder: `mid_block.attentions.0`, `up_blocks.3.resnets.1`, and finer ones within them."""
        parts = teacher_key.removeprefix("decoder.").split(".")
        layer = 3 if parts[0] == "mid_block" else 4
        return (".".join(parts[:layer]), ".".join(parts[:-1]))

    def folded_shortcuts(self, teacher_config: Mapping[str, Any]) -> tuple[int, ...]:
        """Up blocks whose first ResBlock has a shortcut convolution in the VAE, and none under the plan."""
        widths = stage_widths(teacher_config)
        pairs = zip(self.widths[1:], self.upsampler_widths, strict=True)
        return tuple(
            i
            for i, (width, upsampled) in enumerate(pairs, start=1)
            if widths[i - 1] != widths[i] and width == upsampled
        )

    def only_layers(self, teacher_config: Mapping[str, Any]) -> "DecoderPruningPlan":
        """What of the plan precedes channel pruning: its layers, at the VAE's widths, with shortcuts folded away."""
        widths = stage_widths(teacher_config)
        folded = self.folded_shortcuts(teacher_config)
        upsampled = tuple(widths[i] if i in folded else widths[i - 1] for i in range(1, len(widths)))
        return replace(self, name=f"{self.name}-layers", widths=widths, upsampler_widths=upsampled)

    def _stages(self, teacher_config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """`(student module, teacher module, layer that has the same output channels)` of each stage."""
        self._check_fits(teacher_config)
        spatial = "" if "norm_num_groups" in teacher_config else ".spatial_res_block"
        last, folded = len(self.up) - 1, self.folded_shortcuts(teacher_config)
        stages = [("mid_block", "mid_block", "conv_in")]  # what the mid block adds to runs through from there
        for i in range(last):
            shortcut = f"up_blocks.{i + 1}.resnets.0{spatial}.conv_shortcut"
            teacher = shortcut if i + 1 in folded else f"up_blocks.{i}"
            stages.append((f"up_blocks.{i}", teacher, f"up_blocks.{i}.upsamplers.0.conv"))
        stages.append((f"up_blocks.{last}", f"up_blocks.{last}", f"up_blocks.{last}.resnets.0{spatial}.conv2"))
        return stages

    def _check_fits(self, vae_config: Mapping[str, Any]) -> None:
        """Raises `PruningPlanError`, with the name of the first part of the decoder that does not fit."""
        widths = stage_widths(vae_config)
        num_layers = vae_config["layers_per_block"] + 1
        groups = vae_config.get("norm_num_groups", 32)
        if len(self.up) != len(widths):
            raise PruningPlanError(f"The plan has {len(self.up)} up blocks, and the VAE {len(widths)}.")
        whole = type(self).keep_everything(vae_config)
        if not set(self.mid) <= set(whole.mid) or self.keep_mid_attention > whole.keep_mid_attention:
            raise PruningPlanError("The plan keeps layers of the mid block that the VAE does not have.")
        for i, layers in self.up.items():
            if layers[-1] >= num_layers:
                raise PruningPlanError(f"up_blocks.{i} has {num_layers} ResBlocks, of which {layers[-1]} is not one.")
            if layers[0] != 0 and i > 0 and widths[i] != widths[i - 1]:
                raise PruningPlanError(
                    f"The plan removes ResBlock 0 of up_blocks.{i}, which alone takes {widths[i - 1]} channels."
                )
        for kind, kept, largest in (
            ("up block", self.widths, widths),
            ("upsampler", self.upsampler_widths, widths[:-1]),
        ):
            for i, (width, most) in enumerate(zip(kept, largest, strict=True)):
                if width > most or width % groups:
                    raise PruningPlanError(
                        f"The width {width} of {kind} {i} is not a multiple of {groups}, the groups of its norms, up"
                        f" to {most}."
                    )
        for i, (width, upsampled) in enumerate(zip(self.widths[1:], self.upsampler_widths, strict=True)):
            if widths[i] == widths[i + 1] and width != upsampled:
                raise PruningPlanError(
                    f"Upsampler {i} hands over {upsampled} channels, and up block {i + 1} has {width}: the VAE adds"
                    " one to the other, so they keep the same channels."
                )


def stage_widths(vae_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of a stock VAE's up blocks, in their order."""
    return tuple(vae_config["block_out_channels"])[::-1]
