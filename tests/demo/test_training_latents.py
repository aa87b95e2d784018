import numpy as np
import pytest
import torch

from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.data.vae_clips import encode_for_decoder
from vdmini_diffusers.demo import training_latents
from vdmini_diffusers.demo.scenes import draw_captioned_clip
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.demo.training_latents import as_values, write_decoder_clips, write_training_latents
from vdmini_diffusers.families.videocrafter import encode_text_to_video
from vdmini_diffusers.pipelines import VDMiniT2VPipeline
from vdmini_diffusers.pruning.vae_folder import find_vae


def test_clips_are_written_as_the_training_scripts_read_them_and_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(training_latents, "CLIPS_PER_SHARD", 2)
    sets = [PrecomputedLatents(write_training_latents(tmp_path / name, I2V_TEACHER, 3)) for name in ("a", "b")]
    assert [len(latents) for latents in sets] == [3, 3]
    assert sets[0][2]["latents"].shape == (16, 8, 8, 8)
    assert set(sets[0][0]) == {"latents", "image_latents", "image_embeds", "added_time_ids"}
    for i in range(3):
        for name, tensor in sets[0][i].items():
            assert torch.equal(tensor, sets[1][i][name])
    assert not torch.equal(sets[0][0]["latents"], sets[0][1]["latents"])


def test_clips_for_a_decoder_hold_frames_and_what_the_vae_makes_of_them(tmp_path):
    clips = PrecomputedLatents(write_decoder_clips(tmp_path, I2V_TEACHER, 2))
    assert {name: tuple(tensor.shape) for name, tensor in clips[1].items()} == {
        "latents": (16, 8, 8, 8),
        "pixel_values": (16, 3, 64, 64),
    }
    vae = find_vae(str(I2V_TEACHER)).load()
    values = clips[1]["pixel_values"][None] / 127.5 - 1
    torch.testing.assert_close(encode_for_decoder({"pixel_values": values}, vae)["latents"][0], clips[1]["latents"])


def test_latents_of_another_seed_are_not_mixed_in(tmp_path):
    write_training_latents(tmp_path, I2V_TEACHER, 1)
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        write_training_latents(tmp_path, I2V_TEACHER, 1, seed=1)


def test_clips_for_text_to_video_have_captions_and_their_embeddings(tmp_path):
    of_captions = PrecomputedLatents(write_training_latents(tmp_path / "t2v", T2V_TEACHER, 1, seed=5))
    frames, caption = draw_captioned_clip(np.random.default_rng((5, 11, 0)))
    assert of_captions.info(0)["caption"] == caption
    pipe = VDMiniT2VPipeline.from_pretrained(T2V_TEACHER, unet=None, dtype=torch.float32)
    batch = {"pixel_values": as_values(frames), "caption": [caption], "fps": [8]}
    expected = encode_text_to_video(batch, pipe, [torch.Generator().manual_seed(0)])
    for name in ("latents", "prompt_embeds", "pooled_prompt_embeds"):
        torch.testing.assert_close(of_captions[0][name], expected[name][0])
