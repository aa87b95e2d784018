"""Text and image encoders of video pipelines: their files are accepted by the names that any transformers gives."""

import pytest
import safetensors.torch
import transformers
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    SiglipVisionConfig,
    UMT5Config,
)

from vdmini_diffusers.pruning.components import check_component, component_classes
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_checkpoint


NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**NARROW, "num_key_value_heads": 1, "vocab_size": 40}
VISION = {**NARROW, "image_size": 8, "patch_size": 4}
GEMMA = {**TEXT, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

ENCODERS = {
    "CLIPVisionModel": lambda: CLIPVisionConfig(**VISION),
    "Gemma2Model": lambda: Gemma2Config(**GEMMA),
    "Gemma3ForConditionalGeneration": lambda: Gemma3Config(
        text_config=Gemma3TextConfig(**GEMMA),
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
    ),
    "LlamaModel": lambda: LlamaConfig(**TEXT),
    "LlavaForConditionalGeneration": lambda: LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION)
    ),
    "Qwen2_5_VLForConditionalGeneration": lambda: Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    ),
    "SiglipVisionModel": lambda: SiglipVisionConfig(**VISION),
    "UMT5EncoderModel": lambda: UMT5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
}


@pytest.mark.parametrize("original", [True, False], ids=["names-on-the-hub", "names-of-the-class"])
@pytest.mark.parametrize("name", ENCODERS)
def test_files_are_accepted_and_gaps_are_found(tmp_path, name, original):
    cls = getattr(transformers, name)
    model = cls(ENCODERS[name]())
    model.save_pretrained(tmp_path, save_original_format=original)
    check_component(tmp_path, read_checkpoint(tmp_path, "model"), name, {name: cls})
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    (gone, *_) = [key for key in tensors if key.endswith(("q_proj.weight", ".q.weight", "qkv.weight"))]
    safetensors.torch.save_file({key: t for key, t in tensors.items() if key != gone}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="the weights lack tensor"):
        check_component(tmp_path, read_checkpoint(tmp_path, "model"), name, {name: cls})


def test_a_subclass_of_what_a_pipeline_declares_is_accepted():
    from diffusers import SanaVideoPipeline

    assert "Gemma2Model" in component_classes(SanaVideoPipeline, "text_encoder", None, "Gemma2Model")
    assert "CLIPTextModel" not in component_classes(SanaVideoPipeline, "text_encoder", None, "CLIPTextModel")


def test_a_text_encoder_of_two_kinds_is_checked_by_the_class_that_the_index_names():
    from diffusers import EasyAnimatePipeline

    classes = component_classes(EasyAnimatePipeline, "text_encoder", None, "BertModel")
    assert set(classes) == {"Qwen2VLForConditionalGeneration", "BertModel"}
