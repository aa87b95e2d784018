"""Distillation of video transformers, on a tiny HunyuanVideo: what is compared, judged and refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file
from tiny_hunyuan_video import TINY_PLAN, tiny_hunyuan_pipeline, write_hunyuan_latents
from written_latents import write_latents
from written_videos import write_video

from vdmini_diffusers import distill
from vdmini_diffusers.data.latents import LatentShards, PrecomputedLatents
from vdmini_diffusers.distillation.flow_matching_arguments import FlowMatchingArguments, FlowMatchingCriticArguments
from vdmini_diffusers.families import ClipShape
from vdmini_diffusers.families.hunyuan_video import HUNYUAN_VIDEO, encode_text_to_video
from vdmini_diffusers.pruning import PAPER_LITERAL, VDMINI_HY
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.trainers.flow_matching import FlowMatchingPair, pairs_after_removed_runs


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FEW = {
    "max_train_steps": 1,
    "lr_warmup_steps": 0,
    "learning_rate": 1e-3,
    "mixed_precision": "no",
    "discriminator_width": 32,
    "critic_block_stride": 3,
    "critic_warmup_steps": 0,
    "mca_start_step": 0,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Teacher, pruned student, precomputed latents."""
    folder = tmp_path_factory.mktemp("hy")
    tiny_hunyuan_pipeline().save_pretrained(folder / "teacher")
    student = prune_pipeline(folder / "teacher", folder / "student", TINY_PLAN)
    return folder / "teacher", student, write_hunyuan_latents(folder / "latents", num_samples=2)


def config_of(num_layers: int, num_single_layers: int) -> dict[str, object]:
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(num_layers=num_layers, num_single_layers=num_single_layers)
    return {"_class_name": "HunyuanVideoTransformer3DModel", **model.config}


class TestPairs:
    def test_features_are_compared_after_the_last_block_of_each_removed_run(self):
        """Both streams; after five runs of four blocks."""
        assert pairs_after_removed_runs(VDMINI_HY, config_of(20, 40)) == tuple(
            (f"{student}{stream}", f"{teacher}{stream}")
            for student, teacher in (
                ("transformer_blocks.4", "transformer_blocks.8"),
                ("transformer_blocks.7", "transformer_blocks.15"),
                ("single_transformer_blocks.7", "single_transformer_blocks.11"),
                ("single_transformer_blocks.13", "single_transformer_blocks.21"),
                ("single_transformer_blocks.19", "single_transformer_blocks.31"),
            )
            for stream in ("", "[1]")
        )

    def test_a_run_across_two_lists_and_one_at_the_start(self):
        """Nothing of the student stands before the first eight blocks, so its first block is compared."""
        assert [pair for pair in pairs_after_removed_runs(PAPER_LITERAL, config_of(20, 40)) if "[" not in pair[0]] == [
            ("transformer_blocks.0", "transformer_blocks.8"),
            ("transformer_blocks.11", "single_transformer_blocks.11"),
        ]


def pair(**settings) -> FlowMatchingPair:
    made = FlowMatchingPair("teacher", "student", FlowMatchingArguments(**settings))
    made.family = HUNYUAN_VIDEO
    return made


def test_critics_see_the_video_after_every_nth_block_of_either_list():
    arguments = FlowMatchingCriticArguments(critic_block_stride=16)
    assert pair().critic_channels(arguments, config_of(20, 40)) == {
        "transformer_blocks.15": 3072,
        "single_transformer_blocks.11": 3072,
        "single_transformer_blocks.27": 3072,
    }
    with pytest.raises(ValueError, match="`--critic_block_stride` 61 is more than the 60 blocks"):
        pair().critic_channels(FlowMatchingCriticArguments(critic_block_stride=61), config_of(20, 40))


def test_one_step_on_latents_trains_a_pipeline_that_stock_diffusers_opens(folders, tmp_path):
    teacher, student, latents = folders
    out = distill(teacher, student, tmp_path / "out", precomputed_data_dir=str(latents), **FEW)
    before, after = load_file(student / WEIGHTS), load_file(out / WEIGHTS)
    assert set(before) == set(after) and any(not torch.equal(before[name], after[name]) for name in before)
    assert type(HunyuanVideoPipeline.from_pretrained(out).transformer) is HunyuanVideoTransformer3DModel
    record = json.loads((out / "training.json").read_text())
    assert (record["plan"], record["flow_shift"], record["icd_normalize"]) == ("tiny", 1.0, True)
    assert "by ICMD (section 3.3) for 1 steps" in (out / "README.md").read_text()


def test_fastvideo_s_files_give_the_losses_of_the_same_clips_in_ours(folders, tmp_path):
    """Its latents are not scaled, and hold the pooled embedding as the text's first row."""
    teacher, student, _ = folders
    generator = torch.Generator().manual_seed(0)
    scale = json.loads((teacher / "vae" / "config.json").read_text())["scaling_factor"]
    rows, samples = [], []
    for i in range(2):
        latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(4 + i, 16, generator=generator)
        text[0, 8:] = 0
        stored = {"vae_latent": (latents / scale).transpose(0, 1).contiguous(), "text_embedding": text}
        about = {"fps": 24.0, "caption": ""}
        for name, tensor in stored.items():
            content = {"bytes": tensor.numpy().tobytes(), "shape": list(tensor.shape), "dtype": "float32"}
            about |= {f"{name}_{part}": value for part, value in content.items()}
        rows.append(about)
        embeds = torch.nn.functional.pad(text[1:], (0, 0, 0, 257 - len(text)))
        samples.append(
            {
                "latents": latents,
                "prompt_embeds": embeds,
                "prompt_attention_mask": (torch.arange(256) < len(text) - 1).long(),
                "pooled_prompt_embeds": text[0, :8].clone(),
                "fps": torch.tensor(24.0),
            }
        )
    (tmp_path / "fastvideo").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "fastvideo" / "0.parquet")
    shards = LatentShards(tmp_path / "ours", {})
    shards.write(0, samples, [{"name": str(i), "caption": ""} for i in range(2)])
    shards.finish([])
    outs = [
        distill(teacher, student, tmp_path / f"out-{data}", precomputed_data_dir=str(tmp_path / data), **FEW)
        for data in ("fastvideo", "ours")
    ]
    a, b = (load_file(out / WEIGHTS) for out in outs)
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-5

    shorter = torch.randn(4, 1, 8, 8, generator=generator)
    changes = {"vae_latent_bytes": shorter.numpy().tobytes(), "vae_latent_shape": list(shorter.shape)}
    parquet.write_table(pa.Table.from_pylist([rows[0] | changes]), tmp_path / "fastvideo" / "1.parquet")
    given = {**FEW, "precomputed_data_dir": str(tmp_path / "fastvideo"), "train_batch_size": 2}
    with pytest.raises(ValueError, match=r"latents of 2 shapes.*--train_batch_size 1"):
        distill(teacher, student, tmp_path / "mixed", **given)


def test_the_defaults_are_fastvideo_s_and_the_paper_s(folders, tmp_path):
    """Seen by a dry run, which has them all in its record."""
    teacher, student, latents = folders
    printed = {}

    def note(record, output_dir):
        printed.update(record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vdmini_diffusers.trainers.train_denoiser.report_settings", note)
        settings = {"mixed_precision": "no", "critic_block_stride": 3, "dry_run": True}
        distill(teacher, student, tmp_path / "out", precomputed_data_dir=str(latents), **settings)
    expected = {
        "max_train_steps": 30_000,
        "learning_rate": 5e-6,
        "discriminator_learning_rate": 1e-5,
        "lr_warmup_steps": 10,
        "adam_weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": True,
        "flow_shift": 1.0,
        "timestep_density": "uniform",
        "embedded_guidance": 1.0,
        "text_mask": True,
        "training_target": "velocity",
        "lambda_icd": 0.1,
        "lambda_mca": 1.0,
        "lambda_data_critic": 0.0,
        "icd_places": "removed_runs",
        "critic_backbone": str(teacher),
    }
    assert {name: printed[name] for name in expected} == expected
    assert not (tmp_path / "out").exists()


def test_clips_are_encoded_as_the_pipeline_would_and_scaled(folders):
    pipe = HunyuanVideoPipeline.from_pretrained(folders[0], transformer=None)
    videos = torch.rand(2, 5, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"pixel_values": videos, "caption": ["a cat", "a dog"], "fps": torch.tensor([24, 24])}
    encoded = encode_text_to_video(batch, pipe, [torch.Generator().manual_seed(i) for i in range(2)])
    assert encoded["latents"].shape == (2, 2, 4, 2, 4)
    alone = encode_text_to_video(
        {name: value[1:] for name, value in batch.items()}, pipe, [torch.Generator().manual_seed(1)]
    )
    torch.testing.assert_close(alone["latents"], encoded["latents"][1:])
    posterior = pipe.vae.encode(videos[1:].transpose(1, 2)).latent_dist
    drawn = posterior.sample(torch.Generator().manual_seed(1)) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(drawn.transpose(1, 2), alone["latents"], rtol=1e-4, atol=1e-5)
    prompt_embeds, pooled, mask = pipe.encode_prompt("a dog")
    torch.testing.assert_close(encoded["prompt_embeds"][1:], prompt_embeds)
    torch.testing.assert_close(encoded["pooled_prompt_embeds"][1:], pooled)
    assert torch.equal(encoded["prompt_attention_mask"][1:], mask)
    with pytest.raises(ValueError, match="one frame more than a multiple of 4"):
        encode_text_to_video({**batch, "pixel_values": videos[:, :4]}, pipe)
    with pytest.raises(ValueError, match="height and width multiples of 16"):
        encode_text_to_video({**batch, "pixel_values": videos[..., :24]}, pipe)


def test_videos_are_encoded_on_the_way_and_validation_prompts_are_filmed(folders, tmp_path):
    teacher, student, _ = folders
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "0.mp4", 10, 24)
    (videos / "metadata.jsonl").write_text(json.dumps({"file_name": "0.mp4", "caption": "a cat"}))
    shape = {"num_frames": 5, "height": 16, "width": 16, "fps": 24}
    data = {"train_data_dir": str(videos), "cache_dir": str(tmp_path / "cache"), **shape}
    validation = {"validation_prompts": ["a cat"], "validation_steps": 1}
    light = {"critic_backbone": "none", "critic_block_stride": 8, "lambda_mca": 0.0}
    distill(teacher, student, tmp_path / "out", **data, **validation, **{**FEW, **light})
    with Image.open(tmp_path / "out" / "validation" / "step-000001-0.gif") as gif:
        assert gif.n_frames == 5 and np.asarray(gif.convert("RGB")).shape == (16, 16, 3)


def test_models_of_other_families_are_refused(folders, teacher_folder, tmp_path):
    teacher, student, latents = folders
    settings = {"precomputed_data_dir": str(latents), **FEW}
    with pytest.raises(ValueError, match=r"is for image to video \(Stable Video Diffusion\)"):
        distill(teacher_folder, student, tmp_path / "out", **settings)
    other = str(write_latents(tmp_path / "latents", 2))
    with pytest.raises(ValueError, match="has no fps, pooled_prompt_embeds, prompt_attention_mask, prompt_embeds"):
        distill(teacher, student, tmp_path / "out", precomputed_data_dir=other, **FEW)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": (2, 5, 8, 8)}, "has 5 channels of latents, and .*teacher takes 4: it was encoded for another"),
        ({"latents": (2, 4, 8, 7)}, r"latents of the shape \(2, 4, 8, 7\), .* cannot divide into tokens"),
        ({"pooled_prompt_embeds": (6,)}, "has 6 values of a text's embedding, and .*teacher takes 8: it was encoded"),
    ],
)
def test_what_was_encoded_for_another_model_is_refused(folders, tmp_path, change, message):
    teacher, student, latents = folders
    sample = PrecomputedLatents(latents)[0]
    sample = {name: sample[name] for name in HUNYUAN_VIDEO.sample_tensors}
    sample |= {name: torch.zeros(shape) for name, shape in change.items()}
    shards = LatentShards(tmp_path / "latents", {})
    shards.write(0, [sample], [{"name": "0", "caption": ""}])
    shards.finish([])
    with pytest.raises(ValueError, match=message):
        distill(teacher, student, tmp_path / "out", precomputed_data_dir=str(tmp_path / "latents"), **FEW)


def test_a_clip_without_a_frame_rate_is_shown_all_the_same(tmp_path):
    """FastVideo's rows may have none."""
    made = pair()
    made.clip_shape = ClipShape(2, 16, 16, 0.0)
    (path,) = made._write_videos(SimpleNamespace(output_dir=tmp_path), [[Image.new("RGB", (16, 16))] * 2], 1)
    assert path.is_file()


def test_a_stride_beyond_the_backbone_is_refused_before_it_is_loaded(folders, tmp_path):
    teacher, student, latents = folders
    empty = shutil.copytree(teacher, tmp_path / "teacher")
    (empty / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="`--critic_block_stride` 10 is more than the 9 blocks"):
        settings = {**FEW, "critic_block_stride": 10}
        distill(empty, student, tmp_path / "out", precomputed_data_dir=str(latents), **settings)
