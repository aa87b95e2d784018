import pytest
import torch
from tiny_text_to_video import tiny_t2v_pipeline

from vdmini_diffusers.families.videocrafter import encode_text_to_video


def batch(count: int = 3) -> dict:
    values = torch.rand(count, 2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    captions = ["a photo of a cat", "a cat!", ""][:count]
    return {"pixel_values": values, "caption": captions, "fps": torch.tensor([8, 8, 24][:count])}


def generators(count: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@pytest.fixture(scope="module")
def pipe():
    return tiny_t2v_pipeline()


def test_latents_are_drawn_from_the_posterior_and_scaled(pipe):
    encoded = encode_text_to_video(batch(), pipe, generators(), encode_chunk_size=4)
    for i in range(3):
        with torch.no_grad():
            posterior = pipe.vae.encode(batch()["pixel_values"][i]).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generators()[i])
        expected = (posterior.mean + posterior.std * noise) * pipe.vae.config.scaling_factor
        torch.testing.assert_close(encoded["latents"][i], expected)
    assert encoded["fps"].tolist() == [8, 8, 24]


def test_a_sample_s_latents_do_not_depend_on_its_neighbours(pipe):
    together = encode_text_to_video(batch(), pipe, generators())["latents"]
    alone = encode_text_to_video({name: value[:1] for name, value in batch().items()}, pipe, generators(1))["latents"]
    torch.testing.assert_close(together[:1], alone)


def test_latents_of_a_vae_in_bfloat16_are_drawn_in_float32():
    pipe = tiny_t2v_pipeline()
    pipe.vae.bfloat16()
    latents = encode_text_to_video(batch(1), pipe, generators(1))["latents"][0]
    with torch.no_grad():
        posterior = pipe.vae.encode(batch(1)["pixel_values"][0].bfloat16()).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generators(1)[0])
    expected = (posterior.mean.float() + posterior.std.float() * noise) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)


def test_the_pooled_embedding_is_the_hidden_state_at_the_end_token(pipe):
    encoded = encode_text_to_video(batch(), pipe, generators())
    expected, _ = pipe.encode_prompt(batch()["caption"], torch.device("cpu"))
    torch.testing.assert_close(encoded["prompt_embeds"], expected)
    lengths = [len(pipe.tokenizer(caption).input_ids) for caption in batch()["caption"]]
    for i, length in enumerate(lengths):
        assert torch.equal(encoded["pooled_prompt_embeds"][i], encoded["prompt_embeds"][i, length - 1])


def test_captions_and_generators_belong_to_samples(pipe):
    with pytest.raises(ValueError, match="for each of the 3 samples"):
        encode_text_to_video(batch(), pipe, generators(2))
