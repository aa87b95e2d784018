"""What the tests in this folder run on a device: a U-Net's forward pass, a pipeline, and accelerators in turn."""

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny import tiny_image, tiny_unet_inputs
from tiny_text_to_video import tiny_t2v_inputs

from vdmini_diffusers import VDMiniI2VPipeline


@torch.no_grad()
def forward(unet, frames=2):
    """Of tiny inputs, on the U-Net's device and in its dtype; the result on the CPU in float32."""
    text_to_video = "fps_cond" in unet.config
    given = (
        tiny_t2v_inputs(unet, batch=1, frames=frames)
        if text_to_video
        else dict(
            zip(
                ("sample", "timestep", "encoder_hidden_states", "added_time_ids"),
                tiny_unet_inputs(frames=frames, tokens=2),
                strict=True,
            )
        )
    )
    placed = {n: x.to(unet.device, unet.dtype if x.is_floating_point() else x.dtype) for n, x in given.items()}
    return unet(**placed).sample.float().cpu()


def video(pipe):
    """Of two frames, `(1, 2, 3, 16, 16)`, on the CPU in float32."""
    arguments = {"num_frames": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    if isinstance(pipe, VDMiniI2VPipeline):
        frames = pipe(tiny_image(), num_inference_steps=2, **arguments).frames
    else:
        frames = pipe("a corgi", num_inference_steps=2, **arguments).frames
    return torch.as_tensor(frames).float().cpu()


def forget_accelerator():
    """So that the next one may have another precision."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
