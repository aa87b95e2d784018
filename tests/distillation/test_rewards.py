"""Rewards against the path through transformers' processors, and how their gradient comes back through the VAE."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from test_consistency_task import batch, scheduler
from tiny import randomise
from tiny_text_to_video import CLIP_EXCERPT, tiny_t2v_components, tiny_t2v_teacher
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, XCLIPConfig, XCLIPModel

from vdmini_diffusers.distillation.batches import sample_generators
from vdmini_diffusers.distillation.consistency_arguments import RewardArguments
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule, ODETeacher
from vdmini_diffusers.distillation.reward_models import CLIPReward, XCLIPReward, fit_square
from vdmini_diffusers.distillation.rewards import RewardMixture
from vdmini_diffusers.distillation.tasks.consistency import ConsistencyTask
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER
from vdmini_diffusers.trainers.reward_weights import load_rewards


LAYER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**LAYER, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 0}
VISION = {**LAYER, "image_size": 32, "patch_size": 8}
CAPTIONS = ["a photo of a cat", "a cat!"]


def tiny_clip() -> CLIPModel:
    return randomise(CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))).eval()


def tiny_xclip() -> XCLIPModel:
    vision = {
        **VISION,
        "mit_hidden_size": 16,
        "mit_intermediate_size": 16,
        "mit_num_attention_heads": 2,
        "num_frames": 4,
    }
    config = XCLIPConfig(
        text_config=TEXT, vision_config=vision, projection_dim=16, prompt_layers=1, prompt_num_attention_heads=2
    )
    return randomise(XCLIPModel(config)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(CLIP_EXCERPT)


@pytest.fixture(scope="module")
def vae():
    return tiny_t2v_components(tiny_t2v_teacher())["vae"].requires_grad_(False)


def pictures(count: int, height: int = 40, width: int = 70) -> np.ndarray:
    """Smooth enough that rounding within a resize does not matter, uint8."""
    small = np.random.default_rng(0).integers(0, 256, (count, 6, 9, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in small]
    )


def as_frames(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).movedim(-1, 1) / 255


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (32, 32), (20, 24)])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_frames_become_squares_as_by_pil(fit, shape):
    images = pictures(2, *shape)
    found = fit_square(as_frames(images), 32, fit)
    if fit == "pad":
        scale = 32 / max(shape)
        new = (round(shape[0] * scale), round(shape[1] * scale))
        expected = np.zeros((2, 32, 32, 3), np.uint8)
        top, left = (32 - new[0]) // 2, (32 - new[1]) // 2
        for canvas, image in zip(expected, images, strict=True):
            small = Image.fromarray(image).resize(new[::-1], Image.Resampling.BICUBIC)
            canvas[top : top + new[0], left : left + new[1]] = np.asarray(small)
        expected = as_frames(expected)
    else:
        size = {"shortest_edge": 32} if fit == "crop" else {"height": 32, "width": 32}
        processor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}, do_normalize=False)
        expected = processor(images=list(images), return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255)
    assert (found - expected).abs().mean() < 0.5 / 255


def test_a_clip_reward_is_that_of_model_and_processor(tokenizer):
    model, images = tiny_clip(), pictures(4)
    found = CLIPReward(model, tokenizer, "crop")(as_frames(images).unflatten(0, (2, 2)), CAPTIONS)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokens = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, **processor(images=list(images), return_tensors="pt"))
    cosines = (output.image_embeds @ output.text_embeds.T).view(2, 2, 2)
    expected = torch.stack([cosines[i, :, i].mean() for i in range(2)])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert (expected[0] - expected[1]).abs() > 0.02  # so that a swap of captions would be seen


def test_the_video_reward_is_that_of_x_clip(tokenizer):
    model = tiny_xclip()
    images = np.random.default_rng(0).integers(0, 256, (8, 40, 70, 3), dtype=np.uint8)  # sharp: bicubic is no bilinear
    found = XCLIPReward(model, tokenizer)(as_frames(images).unflatten(0, (2, 4)), CAPTIONS)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        resample=Image.Resampling.BILINEAR,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    pixels = processor(images=list(images), return_tensors="pt").pixel_values.unflatten(0, (2, 4))
    for i, caption in enumerate(CAPTIONS):
        with torch.no_grad():
            output = model(**tokenizer([caption], return_tensors="pt"), pixel_values=pixels[i : i + 1])
        expected = output.logits_per_video[0, 0] / model.logit_scale.exp()
        torch.testing.assert_close(found[i], expected, rtol=0, atol=4e-4)  # other captions: 1e-3


def brightness(frames: torch.Tensor, captions: list[str]) -> torch.Tensor:
    cats = torch.tensor([1 + caption.count("cat") for caption in captions])
    return cats * frames.square().mean(dim=(1, 2, 3, 4))


def motion(frames: torch.Tensor, captions: list[str]) -> torch.Tensor:
    return frames.diff(dim=1).square().mean(dim=(1, 2, 3, 4))


def mixture(vae, **settings) -> RewardMixture:
    return RewardMixture(vae, [(1.0, brightness), (2.0, brightness)], [(1.0, motion)], **settings)


def latents(count: int = 3, frames: int = 8) -> torch.Tensor:
    return torch.randn(count, frames, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def test_value_and_gradient_are_those_of_decoding_everything_at_once(vae):
    rewards, captions = mixture(vae), ["a cat " * 20, "a cat " * 20 + "too", "a dog", ""]
    frames = rewards.draw_frames(8, sample_generators(5, 0, 0, 4))
    denoised = latents(4).requires_grad_()
    losses = rewards.losses(denoised, captions, frames)
    sum(losses.values()).backward()

    reference = latents(4).requires_grad_()
    expected = {"image_reward": 0, "video_reward": 0}
    for i, cats in ((0, 21), (2, 1)):  # the caption between has a word too many, the last has none
        for kind, factor in (("image", 0.2 * 3 * cats), ("video", 0.5)):
            decoded = vae.decode(reference[i, frames[kind][i]] / vae.config.scaling_factor).sample
            pictures = (decoded / 2 + 0.5).clamp(0, 1)
            rated = pictures if kind == "image" else pictures.diff(dim=0)
            expected[f"{kind}_reward"] -= factor / 4 * rated.square().mean()
    sum(expected.values()).backward()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    torch.testing.assert_close(denoised.grad, reference.grad)
    assert [bool(gradient.any()) for gradient in denoised.grad] == [True, False, True, False]
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_a_half_precision_decoder_loses_no_gradient_to_underflow(vae):
    def gradient(decoder) -> torch.Tensor:
        denoised = latents(1).requires_grad_()
        faint = RewardMixture(decoder, [(1e-3, brightness)])  # a pixel's share is that of a large picture
        faint.losses(denoised, ["a cat"], {"image": torch.tensor([[0, 1]])})["image_reward"].backward()
        return denoised.grad

    half, full = gradient(copy.deepcopy(vae).half()), gradient(vae)
    assert (half - full).norm() < 0.05 * full.norm()


def test_frames_are_drawn_per_sample_and_video_frames_with_a_stride(vae):
    drawn = mixture(vae).draw_frames(16, sample_generators(5, 0, 0, 50))
    assert drawn["image"].shape == (50, 2) and all(a != b for a, b in drawn["image"].tolist())
    assert set(drawn["image"].flatten().tolist()) == set(range(16))
    assert (drawn["video"].diff(dim=1) == 4).all() and set(drawn["video"][:, 0].tolist()) == {0, 1, 2, 3}
    uneven = mixture(vae).draw_frames(7, sample_generators(5, 0, 0, 50))["video"]
    assert set(uneven.flatten().tolist()) == set(range(7)) and (uneven.diff(dim=1) == 1).all()
    alone = mixture(vae).draw_frames(16, sample_generators(5, 0, 7, 1))
    assert torch.equal(alone["image"][0], drawn["image"][7])
    with pytest.raises(ValueError, match="needs 4 frames, and clips have 3"):
        mixture(vae).draw_frames(3, sample_generators(5, 0, 0, 1))


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd holds, now and at most."""

    def __init__(self):
        self.now = self.most = 0
        saved = self

        class Held:
            def __init__(self, tensor):
                self.tensor, self.size = tensor, tensor.nbytes
                saved.now += self.size
                saved.most = max(saved.most, saved.now)

            def __del__(self):
                saved.now -= self.size

        super().__init__(Held, lambda held: held.tensor)


def test_what_autograd_holds_is_no_decoder_s_and_grows_with_the_batch_by_a_gradient_each(vae):
    def held(count: int, num_frames: int) -> tuple[int, int]:
        """At most while losses are computed, and after."""
        rewards = RewardMixture(vae, [(1.0, brightness)], num_image_frames=num_frames)
        frames = rewards.draw_frames(8, sample_generators(5, 0, 0, count))
        saved = SavedForBackward()
        with saved:
            losses = rewards.losses(latents(count).requires_grad_(), ["a cat"] * count, frames)
            kept = saved.now
        assert losses
        return saved.most, kept

    plain = SavedForBackward()
    with plain:
        pictures = vae.decode(latents(1)[0, :2].requires_grad_()).sample
    assert pictures.shape == (2, 3, 16, 16)
    most, kept = held(1, 2)
    most_of_many, kept_of_many = held(6, 2)
    gradient = 2 * 4 * 8 * 8 * 4  # bytes, of two frames
    assert most < 0.2 * plain.most
    assert kept < 1.1 * gradient and kept_of_many < 6 * 1.1 * gradient
    assert most_of_many < most + 6 * 1.1 * gradient


def test_frames_are_decoded_one_at_a_time_forward_and_again_backward(vae):
    seen = []
    handle = vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    rewards = RewardMixture(vae, [(1.0, brightness)], num_image_frames=4)
    rewards.losses(latents(2), ["a cat"] * 2, rewards.draw_frames(8, sample_generators(5, 0, 0, 2)))
    handle.remove()
    assert seen == [1] * 16


def test_rewards_reach_the_student_and_are_logged_beside_the_consistency(vae, tokenizer):
    student = tiny_t2v_teacher().requires_grad_(True)
    teacher = ODETeacher(
        VIDEOCRAFTER.predict, tiny_t2v_teacher().requires_grad_(False), DiffusionSchedule.of(scheduler())
    )
    rewards = RewardMixture(vae, [(1.0, CLIPReward(tiny_clip(), tokenizer, "squash"))], num_video_frames=2)
    task = ConsistencyTask(VIDEOCRAFTER, student, DiffusionSchedule.of(scheduler()), teacher, rewards=rewards)
    inputs = task.prepare(batch() | {"caption": CAPTIONS}, sample_generators(5, 0, 0, 2))
    denoised = task.denoise(student, inputs.noisy_latents, inputs.noise_levels, inputs.conditioning)
    losses = task.losses(denoised, inputs)
    assert set(losses) == {"consistency", "image_reward"}
    losses["image_reward"].backward()
    assert sum(parameter.grad.abs().sum() for parameter in student.parameters() if parameter.grad is not None) > 0


def test_without_a_name_there_are_no_rewards(vae):
    assert load_rewards(RewardArguments(), vae) is None


def test_rewards_by_name_come_from_their_folders(vae, tokenizer, tmp_path):
    for name, model in (("clip", tiny_clip()), ("xclip", tiny_xclip())):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    places = {"clip_score_model": str(tmp_path / "clip"), "pick_score_model": str(tmp_path / "clip")}
    args = RewardArguments(
        image_rewards=["clip_score:0.5", "pick_score"],
        video_rewards=["xclip"],
        num_video_reward_frames=4,
        xclip_model=str(tmp_path / "xclip"),
        **places,
    )
    rewards = load_rewards(args, vae)
    assert [(weight, reward.fit) for weight, reward in rewards.image_rewards] == [(0.5, "squash"), (1.0, "crop")]
    assert (rewards.image_weight, rewards.video_weight) == (0.2, 0.5)
    assert (rewards.num_image_frames, rewards.num_video_frames, rewards.max_caption_words) == (2, 4, 40)
    denoised = latents(1).requires_grad_()
    losses = rewards.losses(denoised, ["a cat"], rewards.draw_frames(8, sample_generators(5, 0, 0, 1)))
    sum(losses.values()).backward()
    assert set(losses) == {"image_reward", "video_reward"} and denoised.grad.abs().sum() > 0
    args.num_video_reward_frames = 3
    with pytest.raises(ValueError, match="takes 4 frames: `--num_video_reward_frames 4`"):
        load_rewards(args, vae)


@pytest.mark.parametrize("name", ["clip_score", "pick_score", "hpsv2.1"])
def test_weights_that_cannot_be_had_are_named_with_the_way_to_do_without(vae, name):
    with pytest.raises(
        OSError,
        match=rf"(?s)reward '{name}' cannot.* from \w+/.*leave '{name}' out of `--image_",
    ):
        load_rewards(RewardArguments(image_rewards=[name]), vae)


def test_weights_of_another_model_and_folders_without_a_tokenizer_are_refused(vae, tokenizer, tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    place = str(tmp_path)
    with pytest.raises(OSError, match="has no files of a tokenizer"):
        load_rewards(RewardArguments(image_rewards=["clip_score"], clip_score_model=place), vae)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"holds no whole XCLIPModel; mit\..* more are missing"):
        load_rewards(RewardArguments(video_rewards=["xclip"], xclip_model=place), vae)
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="cannot be read as pickled weights"):
        file = str(tmp_path / "HPS_v2.1_compressed.pt")
        load_rewards(RewardArguments(image_rewards=["hpsv2.1"], hps_checkpoint=file), vae)


def test_unknown_names_and_numbers_that_cannot_be_are_refused(vae):
    with pytest.raises(ValueError, match="`--num_reward_frames` must be at least 1, not 0"):
        RewardArguments(num_reward_frames=0)
    with pytest.raises(ValueError, match=r"'aesthetics' is not known; there are clip_score, pick_score, hpsv2\.1"):
        load_rewards(RewardArguments(image_rewards=["aesthetics:1"]), vae)
    with pytest.raises(ValueError, match="weight of 'xclip:much' is no number"):
        load_rewards(RewardArguments(video_rewards=["xclip:much"]), vae)
