"""Original files become a pipeline folder that computes the same, or a refusal says what they are."""

import hashlib
import json
import shutil

import forked_scripts
import huggingface_hub
import pytest
import safetensors.torch
import torch
from checkout import ROOT
from diffusers import AutoencoderKL, LCMScheduler
from original_inputs import PIXELS, TOKENS, UNET_INPUTS, normal
from tiny_text_to_video import CLIP_EXCERPT
from transformers import CLIPTextModel, CLIPTokenizer

from vdmini_diffusers import VDMiniT2VPipeline, VDMiniUNet3DConditionModel, VDMiniVideoCrafterDDIMScheduler
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.t2v_turbo.checkpoint import read_original
from vdmini_diffusers.t2v_turbo.convert import convert_t2v_turbo, scheduler
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError
from vdmini_diffusers.t2v_turbo.tokenizer import read_tokenizer
from vdmini_diffusers.t2v_turbo.variants import recognise_variant


SCRIPT = ROOT / "conversion" / "convert_t2v_turbo_to_diffusers.py"
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
    assert index["scheduler"] == ["scheduling_ddim_videocrafter_vdmini", "VDMiniVideoCrafterDDIMScheduler"]
    assert isinstance(VDMiniT2VPipeline.from_pretrained(folder).scheduler, VDMiniVideoCrafterDDIMScheduler)


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
    conditions = {"timestep_cond": normal(1, 12), "motion_cond": normal(1, 10), "fps": UNET_INPUTS["fps"]}
    torch.testing.assert_close(unet(*inputs, **conditions).sample, expected["unet_mg"], rtol=0, atol=1e-10)
    scheduler = LCMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]


def test_of_a_whole_checkpoint_given_as_the_u_net_s_only_the_u_net_is_taken(
    whole, originals, tokenizer_folder, tmp_path
):
    other = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    other |= {f"model.diffusion_model.{name}": tensor for name, tensor in originals[0]["unet_mg"].items()}
    (tmp_path / "other").mkdir()
    files = [saved(whole, tmp_path / "model.ckpt"), saved(other, tmp_path / "other" / "model.ckpt")]
    folder = convert_t2v_turbo(files[0], tmp_path / "out", unet_checkpoint_path=files[1], tokenizer=tokenizer_folder)
    tensors = safetensors.torch.load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(tensors["post_quant_conv.bias"], originals[0]["vae"]["post_quant_conv.bias"])
    tensors = safetensors.torch.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(tensors["conv_out.bias"], originals[0]["unet_mg"]["out.2.bias"])
    record = json.loads((folder / "conversion_provenance.json").read_text())
    assert {role: file["sha256"] for role, file in record["files"].items()} == {
        "checkpoint": sha256_of(files[0]),
        "unet_checkpoint": sha256_of(files[1]),
    }
    assert all(file["sha256"] in (folder / "README.md").read_text() for file in record["files"].values())


class TestScheduler:
    """Its steps against the original's, written out; the numbers are large, so that clipping would be seen."""

    ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)
    LATENTS, OUTPUT = 5 * normal(2, 4, 2, 2, 2)

    def x0(self, timestep):
        noise = (1 - self.ALPHAS[timestep]).sqrt() * self.OUTPUT
        return (self.LATENTS - noise) / self.ALPHAS[timestep].sqrt()

    def test_videocrafter2_s_is_its_own_ddim_that_ends_at_the_least_noise(self):
        ddim = scheduler({"time_cond_proj_dim": None})
        ddim.set_timesteps(50)
        assert ddim.timesteps.tolist() == list(range(981, 0, -20))
        for timestep, before in ((981, 961), (21, 1), (1, 0)):
            growth = (1 - 0.3 * min(before, 399) / 399) / (1 - 0.3 * min(timestep, 399) / 399)
            signal, noise = self.ALPHAS[before].sqrt(), (1 - self.ALPHAS[before]).sqrt()
            expected = growth * signal * self.x0(timestep) + noise * self.OUTPUT
            found = ddim.step(self.OUTPUT, timestep, self.LATENTS).prev_sample
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # its table is of single precision

    def test_t2v_turbo_s_is_lcm_s_on_a_grid_of_200(self):
        lcm = scheduler({"time_cond_proj_dim": 256})
        lcm.set_timesteps(4)
        assert lcm.timesteps.tolist() == [999, 749, 499, 249]
        for timestep in (999, 249):
            scaled = (10 * timestep) ** 2
            skip, out = 0.25 / (scaled + 0.25), (scaled / (scaled + 0.25)) ** 0.5
            found = lcm.step(self.OUTPUT, timestep, self.LATENTS).denoised
            torch.testing.assert_close(found, out * self.x0(timestep) + skip * self.LATENTS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["vocab.json and merges.txt", "tokenizer.json"])
def test_the_tokenizer_made_anew_makes_the_words_of_open_clip(form, tmp_path):
    folder = CLIP_EXCERPT
    if form == "tokenizer.json":
        CLIPTokenizer.from_pretrained(CLIP_EXCERPT, pad_token="!").save_pretrained(folder := tmp_path)
        assert not (folder / "merges.txt").exists()
    size = len(json.loads((CLIP_EXCERPT / "vocab.json").read_text()))
    config = {"vocab_size": size, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    tokenizer = read_tokenizer(folder, config)
    goldens = {g["prompt"]: g["tokens"] for g in json.loads((CLIP_EXCERPT / "tokens.json").read_text())}
    for prompt in ("A corgi surfs a wave at sunset.", "Wow! It's raining!!! Don't you see ! ?"):
        assert tokenizer(prompt).input_ids == goldens[prompt]
    assert tokenizer.model_max_length == 77


@pytest.mark.parametrize(
    ("guidance", "motion", "file", "expect", "title"),
    [
        (None, None, "model.ckpt", None, "VideoCrafter2"),
        (256, None, "unet.pt", None, "T2V-Turbo or T2V-Turbo-v2 without motion guidance"),
        (256, None, "unet.pt", "v1", "T2V-Turbo"),
        (256, None, "unet_lora.pt", None, "T2V-Turbo"),
        (256, None, "unet_no_mg.pt", None, "T2V-Turbo-v2 without motion guidance"),
        (256, 256, "unet_mg.pt", None, "T2V-Turbo-v2 with motion guidance"),
    ],
)
def test_what_a_u_net_is_called_by_its_layers_its_file_and_the_user(guidance, motion, file, expect, title):
    config = {"time_cond_proj_dim": guidance, "motion_cond_proj_dim": motion}
    assert recognise_variant(config, file, expect) == (title, "")


def test_files_from_before_zip_archives_are_read(tmp_path):
    tensor = normal(3)
    torch.save({"a": tensor}, tmp_path / "unet.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_original(tmp_path / "unet.pt").components["unet"]["a"], tensor)


@pytest.fixture(scope="module")
def folder(originals, tokenizer_folder, tmp_path_factory):
    """The merged first T2V-Turbo's folder, in single precision."""
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
        found = {"name": source.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert record["files"] == {"checkpoint": found}
        assert record["unet"] == "T2V-Turbo"
        assert str(folder.parent) not in text + (folder / "README.md").read_text()

    def test_the_card_says_that_the_licence_is_not_known(self, folder):
        card = huggingface_hub.ModelCard.load(folder / "README.md")
        assert (card.data.license, card.data.license_name) == ("other", "unknown")
        assert "do not redistribute" in card.text
        assert "$" not in card.text

    def test_it_is_a_teacher_whose_student_inherits_what_is_known_of_the_licence(self, folder, tmp_path):
        student = prune_pipeline(folder, tmp_path / "student")
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

    def test_a_folder_that_holds_the_original_is_not_overwritten(self, folder, tmp_path):
        (tmp_path / "out").mkdir()
        shutil.copy(folder / "model_index.json", tmp_path / "out")
        file = saved({}, tmp_path / "out" / "model.ckpt")
        with pytest.raises(ValueError, match=r"holds the (checkpoint|U-Net)"):
            convert_t2v_turbo(file, tmp_path / "out", overwrite=True)
        assert file.exists()


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

    @pytest.mark.parametrize("state", [{"epoch": 3}, {0: torch.zeros(2)}, [], [torch.zeros(2), 3], 3])
    def test_other_things_than_tensors(self, refuse, state):
        refuse(state, "other things than tensors")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt is not a file"):
            convert_t2v_turbo(tmp_path / "nothing.ckpt", tmp_path / "out")

    def test_a_u_net_that_is_not_what_its_file_s_name_says(self, whole, originals, refuse):
        unet = {name: t for name, t in originals[0]["unet_mg"].items() if name not in MOTION}
        found = "It has layers for guidance, so it is T2V-Turbo or T2V-Turbo-v2 without motion guidance"
        refuse(
            whole, rf"unet_mg\.pt should be T2V-Turbo-v2 with motion .*, by its name\. {found}\. .*are swapped", unet
        )

    @pytest.mark.parametrize("expect", ["videocrafter2", "v1"])
    def test_a_u_net_that_is_not_what_the_user_says(self, expect):
        config = {"time_cond_proj_dim": 256, "motion_cond_proj_dim": 256}
        with pytest.raises(OriginalCheckpointError, match=r"as `expect` .* It has layers for guidance and motion"):
            recognise_variant(config, "unet.pt", expect)

    def test_an_expectation_that_there_is_not(self, tmp_path):
        with pytest.raises(ValueError, match="`expect` is one of videocrafter2, v1, v2-no-mg, v2-mg, not 'v3'"):
            convert_t2v_turbo(tmp_path / "model.ckpt", tmp_path / "out", expect="v3")

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
