"""Every Python block of the model cards and of `pipelines/README.md` runs as printed, on tiny folders.

Only names of models become folders, the GPU becomes the CPU, and half precision single precision.
"""

import re
import string
from pathlib import Path

import pytest
from checkout import ROOT
from diffusers import AutoencoderKLTemporalDecoder, HunyuanVideoPipeline, StableVideoDiffusionPipeline
from PIL import Image
from tiny import student_of, tiny_image, tiny_svd_pipeline
from tiny_hunyuan_video import tiny_hunyuan_pipeline
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_teacher

from vdmini_diffusers import (
    VDMiniAutoencoderKL,
    VDMiniAutoencoderKLTemporalDecoder,
    VDMiniHunyuanVideoPipeline,
    VDMiniI2VPipeline,
)
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.serialization.cards import render_card


CARDS = {  # the folders that a card's `$repository` may stand for
    "sf_v.md": ["svd"],
    "t2v_turbo.md": ["t2v-teacher"],
    "t2v_turbo_converted.md": ["t2v-teacher"],
    "vdmini_i2v.md": ["i2v"],
    "vdmini_i2v_channels.md": ["i2v"],
    "vdmini_t2v.md": ["t2v"],
    "vdmini_vae.md": ["i2v-vae", "t2v-vae"],
}
STOCK_CARDS = ("vdmini_t2v_hy.md", "vdmini_video_transformer.md")  # of students that are stock pipelines
TRIED_ELSEWHERE = {"vdmini_denoiser.md"}  # tests/conversion/test_original_checkpoints.py
# The pipelines whose VAE is replaced: a stock teacher's, and students'.
PIPELINES_OF_VAE = {"i2v-vae": ["svd", "i2v"], "t2v-vae": ["t2v"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    svd = tiny_svd_pipeline()
    svd.save_pretrained(root / "svd")
    VDMiniI2VPipeline(**{**svd.components, "unet": student_of(svd.unet, VDMINI_UNET)}).save_pretrained(root / "i2v")
    tiny_t2v_pipeline(tiny_t2v_teacher()).save_pretrained(root / "t2v-teacher")
    tiny_t2v_pipeline().save_pretrained(root / "t2v")
    tiny_hunyuan_pipeline().save_pretrained(root / "t2v-hy")
    encoder = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32)}
    AutoencoderKLTemporalDecoder(**encoder, layers_per_block=2).save_pretrained(root / "deep-svd" / "vae")
    decoder = {"decoder_layers_per_block": (1, 1), "decoder_mid_layers": 1}
    VDMiniAutoencoderKLTemporalDecoder(
        **encoder,
        decoder_block_out_channels=(32, 32),
        decoder_upsample_out_channels=(32,),
        **decoder,
    ).save_pretrained(root / "i2v-vae")
    VDMiniAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        decoder_block_out_channels=(8, 8),
        decoder_upsample_out_channels=(8,),
        **decoder,
    ).save_pretrained(root / "t2v-vae")
    return root


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def without_gpu(code: str) -> str:
    """What comes before a pipeline is offloaded, which needs a GPU, and its time."""
    return code.partition("pipe.enable_model_cpu_offload()")[0]


def run(code: str, names: dict[str, Path]) -> dict:
    """The variables that `code` leaves; `names` in quotes become folders."""
    for name, folder in names.items():
        code = code.replace(f'"{name}"', f'"{folder}"')
    code = (
        code.replace('.to("cuda")', '.to("cpu")')
        .replace("bfloat16", "float32")
        .replace("float16", "float32")
        .replace(', variant="fp16"', "")
    )
    variables: dict = {}
    exec(compile(code, "snippet", "exec"), variables)
    return variables


def card(template: str, **fields: str) -> str:
    text = (ROOT / "model_cards" / template).read_text("utf-8")
    known = {name: "..." for name in string.Template(text).get_identifiers() if name != "front_matter"}
    return render_card(
        template, front_matter={}, **{**known, "repository": "path/or/id", "variant_argument": "", **fields}
    )


def test_no_card_is_left_out():
    assert {path.name for path in (ROOT / "model_cards").glob("*.md")} == {*CARDS, *STOCK_CARDS, *TRIED_ELSEWHERE}


@pytest.mark.parametrize("template", STOCK_CARDS)
def test_the_block_of_a_stock_pipelines_card_opens_it(template, tmp_path):
    tiny_hunyuan_pipeline().save_pretrained(tmp_path)
    (snippet,) = blocks(card(template))
    assert isinstance(run(without_gpu(snippet), {"path/or/id": tmp_path})["pipe"], HunyuanVideoPipeline)


@pytest.mark.parametrize("template", sorted(set(CARDS) - {"vdmini_vae.md"}))
def test_the_blocks_of_a_pipelines_card_write_a_video(template, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_image().save("first_frame.png")
    snippets = blocks(card(template))
    assert len(snippets) == (2 if template.startswith("vdmini") else 1)
    for snippet in snippets:
        variables = run(snippet, {"path/or/id": folders / CARDS[template][0]})
        with Image.open("video.gif") as video:
            assert video.size == (16, 16) and video.n_frames == len(variables["frames"])
        Path("video.gif").unlink()


@pytest.mark.parametrize(
    ("vae", "pipeline"), [(vae, name) for vae in PIPELINES_OF_VAE for name in PIPELINES_OF_VAE[vae]]
)
def test_the_block_of_a_vaes_card_puts_it_into_the_pipeline_that_it_was_made_from(vae, pipeline, folders):
    cls = VDMiniAutoencoderKLTemporalDecoder if vae == "i2v-vae" else VDMiniAutoencoderKL
    (snippet,) = blocks(card("vdmini_vae.md", class_name=cls.__name__))
    names = {"path/or/id": folders / vae, "path/to/the/pipeline": folders / pipeline}
    pipe = run(snippet, names)["pipe"]
    assert type(pipe.vae) is cls
    assert isinstance(pipe, StableVideoDiffusionPipeline) == (vae == "i2v-vae")


def test_the_blocks_of_the_pipelines_readme_run_in_their_order(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_image().save("first_frame.png")
    names = {
        "org/vdmini-i2v": "i2v",
        "org/vdmini-t2v": "t2v",
        "org/vdmini-t2v-hy": "t2v-hy",
        "path/to/vdmini-vae": "i2v-vae",
        "path/to/stable-video-diffusion": "svd",
        "path/to/svd": "deep-svd",
    }
    snippets = blocks((ROOT / "pipelines" / "README.md").read_text("utf-8"))
    snippets = [snippet for snippet in snippets if "build_app" not in snippet]  # tests/generation/test_app.py has it
    assert len(snippets) == 6
    for snippet in map(without_gpu, snippets):
        # The decoder's fields are those of SVD's four stages; the tiny VAE has two.
        snippet = snippet.replace("=(128, 256, 512, 512)", "=(32, 32)").replace("=(256, 512, 512)", "=(32,)")
        snippet = snippet.replace("(3, 3, 3, 3)", "(3, 3)")
        variables = run(snippet, {name: folders / folder for name, folder in names.items()})
        if "frames" in variables:
            with Image.open("video.gif") as video:
                assert video.n_frames == len(variables["frames"])
        elif "org/vdmini-t2v-hy" in snippet:
            assert isinstance(variables["pipe"], VDMiniHunyuanVideoPipeline)
        elif "svd" in variables:
            assert isinstance(variables["svd"], StableVideoDiffusionPipeline)
        elif "pipe" in variables:
            assert variables["pipe"].vae.use_tiling
