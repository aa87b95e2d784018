"""A VAE that decodes in tiles, in our pipeline and in the stock one."""

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from tiny import tiny_image, tiny_svd_pipeline
from tiny_clips import tiny_tiled_vae

from vdmini_diffusers import VDMiniI2VPipeline


@pytest.fixture
def vae():
    return tiny_tiled_vae()


class TestPipelines:
    ARGUMENTS = {"height": 32, "width": 32, "num_frames": 5, "output_type": "pt"}

    @pytest.fixture
    def parts(self, vae):
        return {**tiny_svd_pipeline().components, "vae": vae}

    def frames(self, pipe, **arguments):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe(tiny_image(), generator=generator, **{**self.ARGUMENTS, **arguments}).frames

    def clip_sizes(self, vae):
        seen = []
        decode = vae.decode

        def noted(z, num_frames, return_dict=True):
            seen.append((len(z), num_frames))
            return decode(z, num_frames, return_dict)

        vae.decode = noted
        return seen

    def test_with_tiling_ours_hands_over_whole_clips(self, parts):
        pipe = VDMiniI2VPipeline(**parts)
        whole = self.frames(pipe)
        seen = self.clip_sizes(pipe.vae)
        pipe.vae.enable_tiling(24, 24, 4, 16, 16, 2)
        tiled = self.frames(pipe, decode_chunk_size=2)
        assert seen == [(5, 5)]
        assert tiled.shape == whole.shape == (1, 5, 3, 32, 32) and not torch.equal(tiled, whole)
        assert (tiled - whole).abs().mean() < 0.1
        two = self.frames(pipe, decode_chunk_size=20, num_videos_per_prompt=2)
        torch.testing.assert_close(two[:1], tiled, rtol=1e-3, atol=1e-3)
        assert seen[1:] == [(5, 5)] * 2

    def test_without_tiling_it_chunks_as_the_stock_pipeline(self, parts):
        pipe = VDMiniI2VPipeline(**parts)
        seen = self.clip_sizes(pipe.vae)
        self.frames(pipe, decode_chunk_size=2)
        assert seen == [(2, 2), (2, 2), (1, 1)]

    def test_the_stock_pipeline_tiles_the_space_of_its_hard_chunks(self, parts):
        pipe = StableVideoDiffusionPipeline(**parts)
        pipe.vae.enable_tiling(24, 24, 4, 16, 16, 2)
        seen = self.clip_sizes(pipe.vae)
        arguments = {"num_inference_steps": 1, "max_guidance_scale": 1.0, "decode_chunk_size": 3}
        assert self.frames(pipe, **arguments).shape == (1, 5, 3, 32, 32)
        assert seen == [(3, 3), (2, 2)]
