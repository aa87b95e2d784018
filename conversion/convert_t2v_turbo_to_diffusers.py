"""Convert the original files of VideoCrafter2 and T2V-Turbo to the folder of a diffusers pipeline.

    python conversion/convert_t2v_turbo_to_diffusers.py \
        --checkpoint_path VideoCrafter2/model.ckpt --unet_checkpoint_path T2V-Turbo-v2/unet_mg.pt \
        --output_dir t2v-turbo-v2
"""

import json
from dataclasses import dataclass, field

from vdmini_diffusers.cli.prune_command import print_command
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.t2v_turbo.convert import PROVENANCE, convert_t2v_turbo
from vdmini_diffusers.t2v_turbo.tokenizer import TOKENIZER
from vdmini_diffusers.t2v_turbo.variants import Variant


@dataclass
class ConversionArguments:
    checkpoint_path: str = field(
        metadata={"help": "A whole checkpoint: VideoCrafter2's model.ckpt, or T2V-Turbo's t2v_turbo_vc2.pt."}
    )
    output_dir: str = field(metadata={"help": "The folder of the pipeline. It must not exist yet."})
    unet_checkpoint_path: str | None = field(
        default=None,
        metadata={
            "help": "A U-Net to take the place of the checkpoint's, T2V-Turbo-v2's unet_mg.pt or unet_no_mg.pt; or"
            " T2V-Turbo's unet_lora.pt, to be merged into it."
        },
    )
    tokenizer: str = field(default=TOKENIZER, metadata={"help": "CLIP's tokenizer: a folder, or an id on the Hub."})
    expect: Variant | None = field(
        default=None, metadata={"help": "Which network the U-Net should be; by default what its file's name says."}
    )
    time_cond_proj_seed: int | None = field(
        default=None, metadata={"help": "For unet_lora.pt: seed from which the unpublished guidance layer is drawn."}
    )
    max_shard_size: str = field(default="10GB", metadata={"help": "Larger weights are split into files of this size."})
    overwrite: bool = field(default=False, metadata={"help": "Replace output_dir if it is a pipeline folder."})


def main(args: ConversionArguments) -> None:
    folder = convert_t2v_turbo(**vars(args))
    record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    print(f"{record['unet']}, U-Net of {record['num_parameters']:,} parameters")
    if record["doubt"]:
        print(f"In doubt: {record['doubt']}")
    print(f"The pipeline is in {folder}; its README.md shows how to open it. The next step is pruning:")
    print_command(
        "python conversion/convert_t2v_to_vdmini.py",
        pretrained_model_name_or_path=args.output_dir,
        output_dir=f"{args.output_dir}-pruned",
    )


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((ConversionArguments,))))
