"""Prompts become the tokens of open_clip, with which the text encoder was trained; `clip_excerpt` has its output."""

import json

import pytest
import torch
from tiny_text_to_video import CLIP_EXCERPT, tiny_t2v_pipeline
from transformers import CLIPTokenizer

from vdmini_diffusers import VDMiniT2VPipeline
from vdmini_diffusers.pipelines import pipeline_vdmini_t2v


GOLDENS = json.loads((CLIP_EXCERPT / "tokens.json").read_text())
PROMPTS = [golden["prompt"] for golden in GOLDENS]
START, END = 49406, 49407


@pytest.fixture(scope="module")
def pipe():
    return tiny_t2v_pipeline()


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"], ids=["CLIP's", "Stable Diffusion 2's"])
def pipe_of_either_tokenizer(pipe, request):
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_EXCERPT, pad_token=request.param)
    return VDMiniT2VPipeline(**{**pipe.components, "tokenizer": tokenizer})


def padded(tokens: list[int]) -> torch.Tensor:
    return torch.tensor(tokens + [0] * (77 - len(tokens)))


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: ascii(golden["prompt"])[1:25])
def test_tokens_are_open_clips_whatever_the_tokenizer_pads_with(golden, pipe_of_either_tokenizer):
    found = pipe_of_either_tokenizer.tokenize([golden["prompt"]])[0]
    assert torch.equal(found, padded(golden["tokens"]))


def test_the_goldens_hold_what_goes_wrong_by_the_tokenizer_alone():
    """A control: what transformers makes of the prompts with Stable Diffusion 2's settings."""
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_EXCERPT, pad_token="!")
    arguments = {"padding": "max_length", "max_length": 77, "truncation": True}
    same = [tokenizer(g["prompt"], **arguments).input_ids == padded(g["tokens"]).tolist() for g in GOLDENS]
    assert 0 < sum(same) < len(GOLDENS) - 5
    assert {len(golden["tokens"]) for golden in GOLDENS} >= {2, 77}
    assert all(golden["tokens"][0] == START and golden["tokens"][-1] == END for golden in GOLDENS)


def test_prompts_of_a_batch_are_rows_and_are_encoded_without_a_mask(pipe):
    rows = pipe.tokenize(PROMPTS)
    assert rows.shape == (len(PROMPTS), 77) and rows.dtype == torch.long
    assert torch.equal(rows, torch.stack([padded(golden["tokens"]) for golden in GOLDENS]))
    with torch.no_grad():
        expected = pipe.text_encoder(rows).last_hidden_state
    assert torch.equal(pipe.encode_prompt(PROMPTS)[0], expected)


def test_what_is_cut_off_is_said(pipe, caplog):
    pipe.tokenize(["cat " * 75])
    assert not caplog.records
    pipe.tokenize(["cat " * 75 + "waves"])
    assert "'waves'" in caplog.text and "77 tokens" in caplog.text


def test_without_ftfy_plain_prompts_keep_their_tokens_and_a_warning_says_what_is_missing(pipe, monkeypatch):
    monkeypatch.setattr(pipeline_vdmini_t2v, "ftfy", None)
    with pytest.warns(UserWarning, match="pip install ftfy"):
        rows = pipe.tokenize(PROMPTS)
    same = {g["prompt"]: torch.equal(row, padded(g["tokens"])) for g, row in zip(GOLDENS, rows, strict=True)}
    assert (
        same["Wow! It's raining!!! Don't you see ! ?"]
        and not same["\u201cCurly\u201d quotes, it\u2019s what they\u2019re called\u2026"]
    )


def test_tokens_survive_saving(pipe_of_either_tokenizer, tmp_path):
    rows = pipe_of_either_tokenizer.tokenize(PROMPTS)
    pipe_of_either_tokenizer.save_pretrained(tmp_path)
    assert torch.equal(VDMiniT2VPipeline.from_pretrained(tmp_path).tokenize(PROMPTS), rows)


def test_a_textual_inversion_of_two_vectors_is_two_tokens():
    pipe = tiny_t2v_pipeline()
    vocab = json.loads((CLIP_EXCERPT / "vocab.json").read_text())
    gaps = set(range(END)) - set(vocab.values())  # filled, as new tokens go after the number of old ones
    merges = [tuple(line.split()) for line in (CLIP_EXCERPT / "merges.txt").read_text("utf-8").splitlines()[1:]]
    pipe.tokenizer = CLIPTokenizer(vocab={**vocab, **{f"gap {i}": i for i in gaps}}, merges=merges)
    vectors = torch.randn(2, 16)
    pipe.load_textual_inversion({"<corgi>": vectors})
    learned = pipe.tokenizer.convert_tokens_to_ids(["<corgi>", "<corgi>_1"])
    assert pipe.tokenize(["A <corgi>!"])[0].tolist()[:6] == [START, 320, *learned, 256, END]
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[learned], vectors)
