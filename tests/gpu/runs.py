"""What the tests in this folder run on a device: a U-Net's forward pass, a pipeline, and accelerators in turn."""

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny import tiny_image, tiny_unet_inputs
from tiny_text_to_video import tiny_t2v_inputs

from vdmini_diffusers import VDMiniI2VPipeline


@torch.no_grad()
def forward(unet, frames=2):
    """Run the U-Net on tiny inputs, on its device and in its dtype; the result is on the CPU in float32."""
    if "fps_cond" in unet.config:
        given = tiny_t2v_inputs(unet, batch=1, frames=frames)
    else:
        names = ("sample", "timestep", "encoder_hidden_states", "added_time_ids")
        given = dict(zip(names, tiny_unet_inputs(frames=frames, tokens=2), strict=True))
    placed = {n: x.to(unet.device, unet.dtype if x.is_floating_point() else x.dtype) for n, x in given.items()}
    return unet(**placed).sample.float().cpu()


def video(pipe):
    """Sample a video of two frames, `(1, 2, 3, 16, 16)`; it is on the CPU in float32."""
    given = tiny_image() if isinstance(pipe, VDMiniI2VPipeline) else "a corgi"
    generator = torch.Generator().manual_seed(0)
    frames = pipe(given, num_frames=2, num_inference_steps=2, generator=generator, output_type="pt").frames
    return torch.as_tensor(frames).float().cpu()


def forget_accelerator():
    """Reset accelerate, so that the next accelerator may have another precision."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
