"""Original files become a pipeline folder that computes the same, or a refusal says what they are."""

import hashlib
import json
import shutil
from pathlib import Path

import forked_scripts
import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, LCMScheduler
from original_inputs import PIXELS, TOKENS, UNET_INPUTS, normal
from transformers import CLIPTextModel, CLIPTokenizer

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel, VideoCrafterDDIMScheduler
from vdmini_diffusers.convert_t2v_turbo import convert_t2v_turbo
from vdmini_diffusers.prune_pipeline import prune_t2v_pipeline
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError
from vdmini_diffusers.t2v_turbo.tokenizer import read_tokenizer


SCRIPT = Path(__file__).parents[2] / "conversion" / "convert_t2v_turbo_to_diffusers.py"
MOTION = ("motion_cond_proj.weight", "combine_proj.weight")


def saved(state, file):
    torch.save(state, file)
    return file


@torch.no_grad()
def test_a_whole_checkpoint_becomes_a_folder_that_computes_what_it_computes(
    whole, originals, tokenizer_folder, tmp_path
):
    file = saved({"state_dict": whole, "global_step": 3}, tmp_path / "model.ckpt")
    folder = convert_t2v_turbo(file, tmp_path / "out", tokenizer=tokenizer_folder)
    _, expected = originals
    double = {"torch_dtype": torch.float64}
    unet = VDMiniUNet3DConditionModel.from_pretrained(folder, subfolder="unet", **double)
    inputs = [UNET_INPUTS[name] for name in ("latents", "timesteps", "context")]
    output = unet(*inputs, fps=UNET_INPUTS["fps"]).sample
    torch.testing.assert_close(output, expected["unet"], rtol=0, atol=1e-10)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **double)
    assert vae.config.scaling_factor == 0.18215
    torch.testing.assert_close(vae.encode(PIXELS).latent_dist.mean, expected["vae"], rtol=0, atol=1e-10)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float64)
    output = text_encoder(TOKENS).last_hidden_state
    torch.testing.assert_close(output, expected["text_encoder"], rtol=0, atol=1e-10)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["scheduling_ddim_videocrafter", "VideoCrafterDDIMScheduler"]
    assert VideoCrafterDDIMScheduler.from_pretrained(folder, subfolder="scheduler").config.steps_offset == 1


@torch.no_grad()
def test_the_u_net_of_t2v_turbo_v2_takes_the_place_of_the_checkpoint_s(whole, originals, tokenizer_folder, tmp_path):
    weights, expected = originals
    files = [saved(whole, tmp_path / "model.ckpt"), saved(weights["unet_mg"], tmp_path / "unet_mg.pt")]
    flags = ["--checkpoint_path", files[0], "--unet_checkpoint_path", files[1], "--max_shard_size", "2MB"]
    flags += ["--tokenizer", tokenizer_folder, "--output_dir", tmp_path / "out"]
    process = forked_scripts.start((SCRIPT, *flags), log=tmp_path / "log")
    process.join()
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 0, printed
    assert "T2V-Turbo-v2 with motion guidance, U-Net of" in printed
    assert "In doubt" not in printed
    assert len(list((tmp_path / "out" / "unet").glob("*.safetensors"))) > 1
    unet = VDMiniUNet3DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet", torch_dtype=torch.float64)
    inputs = [UNET_INPUTS[name] for name in ("latents", "timesteps", "context")]
    told = {"timestep_cond": normal(1, 12), "motion_cond": normal(1, 10), "fps": UNET_INPUTS["fps"]}
    torch.testing.assert_close(unet(*inputs, **told).sample, expected["unet_mg"], rtol=0, atol=1e-10)
    scheduler = LCMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]


@pytest.fixture(scope="module")
def folder(originals, tokenizer_folder, tmp_path_factory):
    """Of the merged first T2V-Turbo, in single precision."""
    parts = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.model."}
    whole = {f"{parts[name]}{key}": t.float() for name in parts for key, t in originals[0][name].items()}
    whole["model.diffusion_model.time_cond_proj.weight"] = normal(32, 12).float()
    folder = tmp_path_factory.mktemp("converted")
    file = saved(whole, folder / "t2v_turbo_vc2.pt")
    return convert_t2v_turbo(file, folder / "out", tokenizer=tokenizer_folder)


class TestFolder:
    def test_the_pipeline_opens_it_and_runs(self, folder):
        pipe = VDMiniT2VPipeline.from_pretrained(folder)
        assert isinstance(pipe.scheduler, LCMScheduler)
        pipe.set_progress_bar_config(disable=True)
        video = pipe("a cat!", height=64, width=64, num_frames=2, num_inference_steps=2, output_type="pt").frames
        assert video.shape == (1, 2, 3, 64, 64)
        assert video.std() > 0.01 and video.isfinite().all()

    def test_exclamation_marks_stay_words_though_the_tokenizer_given_pads_with_them(self, folder, tokenizer_folder):
        given, written = (CLIPTokenizer.from_pretrained(f) for f in (tokenizer_folder, folder / "tokenizer"))
        marks = [512, 256, 513]  # `!` at the end of a word is not the padding, 0
        assert (given("!").input_ids, written("!").input_ids) == ([512, 0, 513], marks)
        assert VDMiniT2VPipeline.from_pretrained(folder).tokenize(["!"])[0].tolist() == marks + [0] * 9

    def test_provenance_names_the_files_with_their_hashes_and_no_path_of_this_machine(self, folder):
        text = (folder / "conversion_provenance.json").read_text()
        record, source = json.loads(text), folder.parent / "t2v_turbo_vc2.pt"
        content = source.read_bytes()
        assert record["files"] == {source.name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
        assert record["unet"] == "T2V-Turbo"
        assert str(folder.parent) not in text + (folder / "README.md").read_text()

    def test_the_card_says_that_the_licence_is_not_known(self, folder):
        card = huggingface_hub.ModelCard.load(folder / "README.md")
        assert (card.data.license, card.data.license_name) == ("other", "unknown")
        assert "do not redistribute" in card.text
        assert "$" not in card.text

    def test_it_is_a_teacher_whose_student_inherits_what_is_known_of_the_licence(self, folder, tmp_path):
        student = prune_t2v_pipeline(folder, tmp_path / "student")
        unets = [VDMiniUNet3DConditionModel.from_pretrained(path, subfolder="unet") for path in (folder, student)]
        assert torch.equal(
            unets[1].up_blocks[0].resnets[2].conv1.weight, unets[0].up_blocks[1].resnets[2].conv1.weight
        )
        assert huggingface_hub.ModelCard.load(student / "README.md").data.license_name == "unknown"

    def test_only_a_pipeline_folder_is_overwritten(self, folder, tmp_path, tokenizer_folder):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="is not a pipeline folder"):
            convert_t2v_turbo(folder.parent / "t2v_turbo_vc2.pt", tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "thesis.txt").exists()


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


class TestRefusals:
    @pytest.fixture
    def refuse(self, tokenizer_folder, tmp_path):
        def refuse(state, match, unet=None, unet_name="unet_mg.pt", **options):
            files = {"checkpoint_path": saved(state, tmp_path / "model.ckpt")}
            if unet is not None:
                files["unet_checkpoint_path"] = saved(unet, tmp_path / unet_name)
            with pytest.raises(OriginalCheckpointError, match=match):
                convert_t2v_turbo(**files, output_dir=tmp_path / "out", **{"tokenizer": tokenizer_folder, **options})
            assert {path.name for path in tmp_path.iterdir()} == {file.name for file in files.values()}

        return refuse

    def test_nothing_in_a_file_is_executed(self, whole, refuse, tmp_path):
        refuse({**whole, "evil": Evil(tmp_path / "written")}, "cannot be read as pickled weights")

    def test_a_u_net_alone_needs_the_rest(self, originals, refuse):
        refuse(originals[0]["unet_mg"], "is a U-Net alone: give VideoCrafter2's `model.ckpt`")

    def test_a_lora_alone_needs_its_base(self, refuse):
        refuse([torch.zeros(4, 64), torch.zeros(64, 4)], "is a LoRA alone: give VideoCrafter2's `model.ckpt`")

    def test_unknown_tensors_are_listed(self, whole, refuse):
        more = {"model_ema.decay": torch.zeros(1), "image_proj_model.latents": torch.zeros(1)}
        refuse(whole | more, "2 unknown tensors: image_proj_model.latents, model_ema.decay")

    def test_missing_tensors_are_listed(self, whole, refuse):
        del whole["first_stage_model.decoder.up.3.block.2.conv1.bias"]
        refuse(whole, r"of the VAE. 1 missing: decoder\.up\.3\.block\.2\.conv1\.bias")

    def test_a_part_that_is_missing_is_named(self, whole, refuse):
        refuse({name: t for name, t in whole.items() if not name.startswith("cond_stage_model.")}, "no text_encoder")

    def test_infinity_is_named(self, whole, refuse):
        whole["model.diffusion_model.out.2.bias"] = torch.full((4,), float("inf"), dtype=torch.float64)
        refuse(whole, "NaN or infinity, in what becomes 'conv_out.bias'")

    @pytest.mark.parametrize("state", [{"epoch": 3}, [], [torch.zeros(2), 3], torch.zeros(2), 3])
    def test_other_things_than_tensors(self, refuse, state):
        refuse(state, "other things than tensors")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt is not a file"):
            convert_t2v_turbo(tmp_path / "nothing.ckpt", tmp_path / "out")

    def test_a_u_net_that_is_not_what_its_file_s_name_says(self, whole, originals, refuse):
        unet = {name: t for name, t in originals[0]["unet_mg"].items() if name not in MOTION}
        found = "It has layers for guidance, so it is T2V-Turbo or T2V-Turbo-v2 without motion guidance"
        refuse(whole, rf"unet_mg\.pt should be T2V-Turbo-v2 with motion guidance, by its name\. {found}", unet)

    @pytest.mark.parametrize("expect", ["videocrafter2", "v1"])
    def test_a_u_net_that_is_not_what_the_user_says(self, whole, originals, refuse, expect):
        refuse(whole, "as `expect`", originals[0]["unet_mg"], "unet.pt", expect=expect)

    def test_an_expectation_that_there_is_not(self, whole, tmp_path, tokenizer_folder):
        file = saved(whole, tmp_path / "model.ckpt")
        with pytest.raises(ValueError, match="`expect` is one of videocrafter2, v1, v2-no-mg, v2-mg, not 'v3'"):
            convert_t2v_turbo(file, tmp_path / "out", tokenizer=tokenizer_folder, expect="v3")

    def test_a_seed_for_a_lora_that_there_is_not(self, whole, tmp_path, tokenizer_folder):
        file = saved(whole, tmp_path / "model.ckpt")
        with pytest.raises(ValueError, match="`time_cond_proj_seed` is for a LoRA"):
            convert_t2v_turbo(file, tmp_path / "out", tokenizer=tokenizer_folder, time_cond_proj_seed=0)

    def test_a_tokenizer_of_another_vocabulary(self, whole, refuse, tokenizer_folder, tmp_path_factory):
        folder = shutil.copytree(tokenizer_folder, tmp_path_factory.mktemp("other") / "tokenizer")
        vocabulary = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps({**vocabulary, "cat": 514}))
        refuse(whole, "has a vocabulary of 514 tokens, and the tokenizer .* 515", tokenizer=folder)

    def test_a_folder_without_a_tokenizer(self, whole, refuse, tmp_path_factory):
        refuse(whole, "a folder needs `tokenizer.json`, or", tokenizer=tmp_path_factory.mktemp("empty"))

    def test_a_tokenizer_whose_marks_are_others(self, tokenizer_folder):
        config = {"vocab_size": 514, "max_position_embeddings": 12, "bos_token_id": 512, "eos_token_id": 511}
        with pytest.raises(OriginalCheckpointError, match="has the `eos_token_id` 513, and the text encoder 511"):
            read_tokenizer(tokenizer_folder, config)


def test_layers_for_motion_guidance_in_the_file_without_it_are_doubted_but_converted(
    whole, originals, tokenizer_folder, tmp_path
):
    files = [saved(whole, tmp_path / "model.ckpt"), saved(originals[0]["unet_mg"], tmp_path / "unet_no_mg.pt")]
    folder = convert_t2v_turbo(files[0], tmp_path / "out", unet_checkpoint_path=files[1], tokenizer=tokenizer_folder)
    doubt = json.loads((folder / "conversion_provenance.json").read_text())["doubt"]
    assert doubt.startswith("It has layers for motion guidance all the same.")
    assert doubt in (folder / "README.md").read_text()
