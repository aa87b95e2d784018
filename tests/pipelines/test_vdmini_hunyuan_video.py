"""T2V-HY's pipeline: prompts without padding, the same videos, and folders that everyone opens."""

import copy
import filecmp
import inspect
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from fresh_python import run_python
from tiny import assert_close
from tiny_hunyuan_video import SHORT_PROMPTS, TINY_CLIP, TINY_PLAN, tiny_hunyuan_pipeline
from tiny_text_to_video import tiny_t2v_pipeline

from vdmini_diffusers import (
    VDMiniHunyuanVideoPipeline,
    VDMiniHunyuanVideoTransformer3DModel,
    VDMiniT2VPipeline,
)
from vdmini_diffusers.pipelines import pipeline_vdmini_hunyuan_video
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


CODE = "pipeline_vdmini_hunyuan_video.py"


@pytest.fixture(scope="module")
def stock():
    pipe = tiny_hunyuan_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(stock):
    made = VDMiniHunyuanVideoPipeline(**stock.components)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def student_folder(stock, tmp_path_factory):
    """Pruned from a teacher's folder; read only."""
    folder = tmp_path_factory.mktemp("hy")
    stock.save_pretrained(folder / "teacher")
    return prune_pipeline(folder / "teacher", folder / "student", TINY_PLAN)


def latents_of(pipe, prompt="a cat", **settings):
    generator = torch.Generator().manual_seed(0)
    given = {**TINY_CLIP, **SHORT_PROMPTS, "generator": generator, "output_type": "latent", **settings}
    return pipe(prompt, **given).frames


def masks_of(pipe, prompt, **settings) -> list[torch.Tensor | None]:
    """The masks that the blocks get."""
    seen = []
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    forwards = [block.forward for block in blocks]
    for block, forward in zip(blocks, forwards, strict=True):
        block.forward = lambda *args, forward=forward: seen.append(args[3]) or forward(*args)
    latents_of(pipe, prompt, **settings)
    for block in blocks:
        del block.forward
    return seen


class TestPadding:
    @pytest.mark.parametrize("prompt", ["a cat", ["a cat", "a dog"], ["a cat", "two"]])
    def test_videos_are_those_of_the_stock_pipeline(self, stock, pipe, prompt):
        assert_close(latents_of(pipe, prompt), latents_of(stock, prompt))

    def test_as_much_is_cut_off_as_all_prompts_of_a_call_share(self, stock, pipe):
        lengths = {}
        for name, prompt in (("alone", "a cat"), ("long", "a long prompt"), ("both", ["a cat", "two"])):
            embeds, _, mask = pipe.encode_prompt(prompt, **SHORT_PROMPTS)
            assert embeds.shape[:2] == mask.shape
            lengths[name] = mask.shape[1]
            whole = stock.encode_prompt(prompt, **SHORT_PROMPTS)
            assert torch.equal(embeds, whole[0][:, : mask.shape[1]]) and not whole[2][:, mask.shape[1] :].any()
        assert lengths["alone"] == lengths["both"] < lengths["long"] == 8

    def test_blocks_get_no_mask_unless_a_prompt_is_shorter_than_another(self, stock, pipe):
        assert all(mask is not None for mask in masks_of(stock, "a cat"))
        assert masks_of(pipe, "a cat") == [None] * 18  # nine blocks, two steps
        assert masks_of(pipe, ["a cat", "a dog"]) == [None] * 18
        assert all(mask is not None for mask in masks_of(pipe, ["a cat", "two"]))

    def test_prompts_and_negative_prompts_of_two_lengths_are_guided_as_in_the_stock_pipeline(self, stock, pipe):
        settings = {"negative_prompt": "ugly dog", "true_cfg_scale": 3.0}
        assert masks_of(pipe, "two", **settings) == [None] * 36
        assert_close(latents_of(pipe, "two", **settings), latents_of(stock, "two", **settings))

    def test_calls_of_two_threads_take_turns(self, pipe):
        """Padding of one must not be seen, nor cut off, in the other."""
        prompts = [["a cat", "two"], "a cat"] * 3
        expected = [latents_of(pipe, prompt) for prompt in prompts]
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda prompt: latents_of(pipe, prompt), prompts))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["compile", "compile_repeated_blocks"])
    def test_a_compiled_transformer_takes_prompts_with_and_without_padding(self, stock, how):
        pipe = VDMiniHunyuanVideoPipeline(**{**stock.components, "transformer": copy.deepcopy(stock.transformer)})
        pipe.set_progress_bar_config(disable=True)
        prompts = ("a cat", ["a cat", "two"], "two", ["two", "abcd"], ["abcd", "wxyz"])
        settings = {**SHORT_PROMPTS, **TINY_CLIP, "num_inference_steps": 1, "output_type": "latent"}

        def films() -> list[torch.Tensor]:
            return [pipe(prompt, **settings, generator=torch.Generator().manual_seed(0)).frames for prompt in prompts]

        expected = films()
        torch._dynamo.reset()
        getattr(pipe.transformer, how)(fullgraph=True, backend="eager")
        for ours, plain in zip(films(), expected, strict=True):
            torch.testing.assert_close(ours, plain)

    def test_kernels_that_take_no_mask_run(self, stock, pipe):
        pipe.transformer.set_attention_backend("_native_flash")
        try:
            found = latents_of(pipe)
            with pytest.raises(ValueError, match="attn_mask"):
                latents_of(stock)
        finally:
            pipe.transformer.set_attention_backend("native")  # it is one for all models
        assert_close(found, latents_of(stock))

    def test_given_embeddings_are_cut_as_well(self, stock, pipe):
        embeds, pooled, mask = stock.encode_prompt("a cat", **SHORT_PROMPTS)
        given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}
        assert masks_of(pipe, None, **given) == [None] * 18
        assert_close(latents_of(pipe, None, **given), latents_of(stock))

    def test_nothing_stays_on_the_transformer_after_a_call(self, pipe):
        latents_of(pipe)
        with pytest.raises(ValueError, match="divisible by 16"):
            latents_of(pipe, height=17)
        modules = (pipe.transformer, *pipe.transformer.transformer_blocks)
        assert not any(module._forward_pre_hooks for module in modules)

    def test_the_signature_is_the_stock_pipeline_s(self, pipe):
        for name in ("__call__", "encode_prompt", "__init__"):
            ours, theirs = (getattr(cls, name) for cls in (type(pipe), HunyuanVideoPipeline))
            assert inspect.signature(ours) == inspect.signature(theirs)


class TestFolders:
    def test_a_pruned_folder_is_a_stock_pipeline_s_with_our_file_beside(self, student_folder):
        index = json.loads((student_folder / "model_index.json").read_text())
        assert index["_class_name"] == "HunyuanVideoPipeline"
        libraries = {entry[0] for entry in index.values() if isinstance(entry, list)}
        assert libraries == {"diffusers", "transformers"}
        assert filecmp.cmp(student_folder / CODE, pipeline_vdmini_hunyuan_video.__file__, shallow=False)
        config = json.loads((student_folder / "transformer" / "config.json").read_text())
        assert config["_class_name"] == "HunyuanVideoTransformer3DModel"
        # FastVideo loads every safetensors file of the folder, and takes the depth from the config.
        files = sorted(path.name for path in (student_folder / "transformer").glob("*.safetensors"))
        assert files == ["diffusion_pytorch_model.safetensors"]
        assert (config["num_layers"], config["num_single_layers"]) == (2, 3)

    def test_text_to_video_s_class_opens_both_kinds_of_folders(self, student_folder, tmp_path):
        tiny_t2v_pipeline().save_pretrained(tmp_path / "turbo")
        assert type(VDMiniT2VPipeline.from_pretrained(tmp_path / "turbo")) is VDMiniT2VPipeline
        pipe = VDMiniT2VPipeline.from_pretrained(student_folder, dtype=torch.bfloat16)
        assert type(pipe) is VDMiniHunyuanVideoPipeline and pipe.transformer.dtype == torch.bfloat16
        assert "prompt_template" in inspect.signature(pipe.__call__).parameters
        own = VDMiniHunyuanVideoTransformer3DModel.from_pretrained(student_folder, subfolder="transformer")
        pipe = VDMiniT2VPipeline.from_pretrained(student_folder, transformer=own)
        assert pipe.transformer is own and own.pruning_plan["name"] == "tiny"

    def test_saved_again_it_is_the_same_folder(self, student_folder, tmp_path):
        own = VDMiniHunyuanVideoTransformer3DModel.from_pretrained(student_folder / "transformer")
        for settings in ({}, {"transformer": own}):
            out = tmp_path / str(len(settings))
            VDMiniT2VPipeline.from_pretrained(student_folder, **settings).save_pretrained(out)
            for name in ("README.md", CODE, "transformer/pruning_plan.json", "transformer/pruning_provenance.json"):
                assert filecmp.cmp(out / name, student_folder / name, shallow=False), name
            indices = [json.loads((folder / "model_index.json").read_text()) for folder in (out, student_folder)]
            for index in indices:
                index.pop("_name_or_path", None)
            assert indices[0] == indices[1]
            assert type(DiffusionPipeline.from_pretrained(out)) is HunyuanVideoPipeline

    def test_the_doors_without_the_package(self, student_folder, tmp_path):
        script = f"""
import json, sys
from diffusers import AutoModel, DiffusionPipeline
folder = sys.argv[1]
stock = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
ours = DiffusionPipeline.from_pretrained(folder, custom_pipeline={CODE[:-3]!r}, trust_remote_code=True)
ours.save_pretrained(sys.argv[2])
again = DiffusionPipeline.from_pretrained(sys.argv[2])
model = AutoModel.from_pretrained(folder, subfolder="transformer")
print(json.dumps([type(one).__name__ for one in (stock, ours, again, model)]))
"""
        out = tmp_path / "again"
        assert run_python(script, student_folder, out, home=tmp_path, package=False) == [
            "HunyuanVideoPipeline",
            "VDMiniHunyuanVideoPipeline",
            "HunyuanVideoPipeline",
            "HunyuanVideoTransformer3DModel",
        ]
        for name in (CODE, "README.md", "transformer/pruning_plan.json"):
            assert filecmp.cmp(out / name, student_folder / name, shallow=False), name

    def test_a_damaged_folder_is_an_error_that_names_it(self, student_folder, tmp_path):
        folder = shutil.copytree(student_folder, tmp_path / "damaged")
        (folder / "model_index.json").write_text("{")
        with pytest.raises(OSError, match=r"damaged/model_index\.json is not valid JSON"):
            VDMiniT2VPipeline.from_pretrained(folder)


class TestFeaturesOfDiffusers:
    @pytest.fixture
    def pipe(self, student_folder):
        pipe = VDMiniT2VPipeline.from_pretrained(student_folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def test_lora_is_saved_and_loaded_by_the_pipeline(self, pipe, student_folder, tmp_path):
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict

        before = latents_of(pipe)
        pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
        adapted = latents_of(pipe)
        assert not torch.allclose(adapted, before, atol=1e-3)
        pipe.save_lora_weights(tmp_path, get_peft_model_state_dict(pipe.transformer))
        fresh = VDMiniT2VPipeline.from_pretrained(student_folder)
        fresh.load_lora_weights(str(tmp_path))
        assert_close(latents_of(fresh), adapted)

    @pytest.mark.parametrize(
        "config",
        [
            FirstBlockCacheConfig(threshold=10.0),
            FasterCacheConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, 901),  # the first step fills it
                tensor_format="BCFHW",
                is_guidance_distilled=True,
            ),
            MagCacheConfig(
                threshold=10.0, max_skip_steps=2, retention_ratio=0.1, num_inference_steps=4, mag_ratios=[1.0] * 4
            ),
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 1001)
            ),
            TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1),
        ],
        ids=lambda config: type(config).__name__.removesuffix("Config"),
    )
    def test_caches_skip_computation(self, pipe, config):
        expected = latents_of(pipe, num_inference_steps=4)
        if hasattr(config, "current_timestep_callback"):
            config.current_timestep_callback = lambda: pipe.current_timestep
        pipe.transformer.enable_cache(config)
        found = latents_of(pipe, num_inference_steps=4)
        assert found.isfinite().all() and not torch.equal(found, expected)
        pipe.transformer.disable_cache()
        assert torch.equal(latents_of(pipe, num_inference_steps=4), expected)

    def test_a_cache_that_never_skips_changes_nothing(self, pipe):
        expected = latents_of(pipe, num_inference_steps=4)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        assert_close(latents_of(pipe, num_inference_steps=4), expected)

    @pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
    def test_group_offloading_of_the_transformer_is_exact(self, pipe, kind):
        expected, cpu = latents_of(pipe), torch.device("cpu")
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)
        assert torch.equal(latents_of(pipe), expected)

    def test_the_vae_decodes_in_slices_and_in_tiles(self, pipe):
        whole = latents_of(pipe, output_type="pt", width=32)
        pipe.vae.enable_slicing()
        assert torch.equal(latents_of(pipe, output_type="pt", width=32), whole)
        pipe.vae.enable_tiling(tile_sample_min_width=24, tile_sample_stride_width=16)
        tiled = latents_of(pipe, output_type="pt", width=32)
        assert tiled.shape == whole.shape and tiled.isfinite().all() and not torch.equal(tiled, whole)

    def test_offload_follows_the_stock_order(self, pipe):
        assert pipe.model_cpu_offload_seq == HunyuanVideoPipeline.model_cpu_offload_seq
        assert isinstance(pipe.transformer, HunyuanVideoTransformer3DModel)
