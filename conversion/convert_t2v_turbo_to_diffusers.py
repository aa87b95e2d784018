"""Convert the original files of VideoCrafter2 and T2V-Turbo to component folders of diffusers.

    python conversion/convert_t2v_turbo_to_diffusers.py \
        --checkpoint_path VideoCrafter2/model.ckpt --unet_checkpoint_path T2V-Turbo-v2/unet_mg.pt \
        --output_dir t2v-turbo-v2
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.convert_t2v_turbo import convert_t2v_turbo


@dataclass
class ConversionArguments:
    checkpoint_path: str = field(
        metadata={"help": "A whole checkpoint: VideoCrafter2's model.ckpt, or T2V-Turbo's t2v_turbo_vc2.pt."}
    )
    output_dir: str = field(metadata={"help": "The folder of the components. It must not exist yet."})
    unet_checkpoint_path: str | None = field(
        default=None,
        metadata={
            "help": "A U-Net to take the place of the checkpoint's: T2V-Turbo-v2's unet_mg.pt or unet_no_mg.pt."
        },
    )
    max_shard_size: str = field(default="10GB", metadata={"help": "Larger weights are split into files of this size."})
    overwrite: bool = field(default=False, metadata={"help": "Replace output_dir if this script wrote it."})


def main(args: ConversionArguments) -> None:
    folder = convert_t2v_turbo(
        args.checkpoint_path,
        args.output_dir,
        unet_checkpoint_path=args.unet_checkpoint_path,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
    )
    config: Any = VDMiniUNet3DConditionModel.load_config(folder / "unet")
    for told, name in (("time_cond_proj_dim", "guidance"), ("motion_cond_proj_dim", "motion"), ("fps_cond", "fps")):
        print(f"the U-Net is told {name}: {'yes' if config[told] else 'no'}")


if __name__ == "__main__":
    main(HfArgumentParser(ConversionArguments).parse_args_into_dataclasses()[0])
