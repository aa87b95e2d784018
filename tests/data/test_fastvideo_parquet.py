"""Parquet files in FastVideo's schema, as its preprocessing for HunyuanVideo and Wan writes them."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch.utils.data import Subset, TensorDataset

from vdmini_diffusers.data import fastvideo_parquet
from vdmini_diffusers.data.fastvideo_parquet import FastVideoParquet, holds_parquet
from vdmini_diffusers.families import family_of
from vdmini_diffusers.trainers.training_data import order_of


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        *(
            field
            for name in ("vae_latent", "text_embedding")
            for field in (
                pa.field(f"{name}_bytes", pa.binary()),
                pa.field(f"{name}_shape", pa.list_(pa.int64())),
                pa.field(f"{name}_dtype", pa.string()),
            )
        ),
        *(pa.field(name, pa.string()) for name in ("file_name", "caption", "media_type")),
        *(pa.field(name, pa.int64()) for name in ("width", "height", "num_frames")),
        *(pa.field(name, pa.float64()) for name in ("duration_sec", "fps")),
    ]
)


def row(i: int, latents: torch.Tensor, text: torch.Tensor, dtype: str = "float32", **changes: object) -> dict:
    tensors = {"vae_latent": latents, "text_embedding": text}
    stored = {
        f"{name}_{part}": value
        for name, tensor in tensors.items()
        for part, value in (
            ("bytes", tensor.to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy().tobytes()),
            ("shape", list(tensor.shape)),
            ("dtype", dtype),
        )
    }
    about = {"id": str(i), "file_name": f"{i}.mp4", "caption": f"clip {i}", "media_type": "video"}
    return {**about, "width": 16, "height": 16, "num_frames": 5, "duration_sec": 0.2, "fps": 24.0, **stored, **changes}


def draw(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(i)
    return torch.randn(4, 2, 3, 3, generator=generator), torch.randn(1 + i, 16, generator=generator)


def write(folder: Path, rows: list[dict], name: str = "a.parquet", group: int = 2) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / name, row_group_size=group)
    return folder


def as_they_are(latents, text):
    return {"latents": latents, "text": text}


def test_rows_of_all_files_and_groups_are_read_in_order(tmp_path):
    write(tmp_path, [row(i, *draw(i)) for i in range(3)], "b/0.parquet")
    write(tmp_path, [row(i, *draw(i)) for i in range(3, 5)], "c.parquet")
    (tmp_path / "map_style_cache").mkdir()  # FastVideo's own
    dataset = FastVideoParquet(tmp_path, as_they_are)
    assert len(dataset) == 5 and holds_parquet(tmp_path)
    for i in range(5):
        latents, text = draw(i)
        assert torch.equal(dataset[i]["latents"], latents) and torch.equal(dataset[i]["text"], text)
    assert dataset[0]["fps"] == 24
    with pytest.raises(IndexError):
        dataset[5]


def test_an_epoch_in_random_order_reads_each_group_once_and_keeps_few(tmp_path, monkeypatch):
    monkeypatch.setattr(fastvideo_parquet, "ROWS_IN_MEMORY", 5)  # three groups of two rows
    write(tmp_path, [row(i, *draw(i)) for i in range(19)])
    dataset, real, reads = FastVideoParquet(tmp_path, as_they_are), parquet.ParquetFile.read_row_group, []

    def read_row_group(file, number, **options):
        reads.append(number)
        assert len(dataset._tables) < 3  # beside the one that is read
        return real(file, number, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", read_row_group)
    rest = Subset(dataset, range(17))  # without two that are held out
    sampler = order_of(rest, seed=3)
    assert sampler is not None and len(sampler) == 17 and order_of(TensorDataset(torch.zeros(4)), seed=3) is None
    first, again = list(sampler), list(sampler)
    assert first == again and sorted(first) == list(range(17))
    for i in first:
        assert torch.equal(rest[i]["text"], draw(i)[1])
    assert sorted(reads) == list(range(9))
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted(sampler) == list(range(17))
    assert reads != sorted(reads)
    pairs = [first.index(i) - first.index(i + 1) for i in range(0, 16, 2)]
    assert max(map(abs, pairs)) > 1  # rows of different groups alternate


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_by_its_name_and_float32_under_any_name(tmp_path, dtype):
    rows = [row(0, *draw(0), dtype=dtype), row(1, *draw(1)) | {"vae_latent_dtype": f"torch.{dtype}"}]
    dataset = FastVideoParquet(write(tmp_path, rows), as_they_are)
    assert torch.equal(dataset[0]["latents"], draw(0)[0].to(getattr(torch, dtype)).float())
    assert torch.equal(dataset[1]["latents"], draw(1)[0])


def test_hunyuan_video_s_first_row_of_text_is_the_pooled_embedding():
    transformer, vae = type("Config", (), {"pooled_projection_dim": 8}), {"scaling_factor": 0.5}
    latents, text = draw(4)
    from_fastvideo = family_of("HunyuanVideoPipeline").from_fastvideo
    for wrong in (text, text[:1]):  # of one encoder, as Wan's; and without a token
        with pytest.raises(ValueError, match=r"zeros after the 8th value, .* these files are for another model"):
            from_fastvideo(latents, wrong, transformer, vae)
    text[0, 8:] = 0
    sample = from_fastvideo(latents, text, transformer, vae)
    assert torch.equal(sample["latents"], 0.5 * latents.transpose(0, 1))
    assert torch.equal(sample["pooled_prompt_embeds"], text[0, :8])
    assert sample["prompt_embeds"].shape == (256, 16) and torch.equal(sample["prompt_embeds"][:4], text[1:])
    assert sample["prompt_attention_mask"].tolist() == [1.0] * 4 + [0.0] * 252


def test_wan_s_latents_are_normalised_by_channel():
    latents, text = draw(4)
    vae = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 1.0, 2.0, 4.0]}
    sample = family_of("WanPipeline").from_fastvideo(latents, text, None, vae)
    assert torch.equal(sample["latents"][:, 2], (latents[2] - 3) / 2)
    assert sample["prompt_embeds"].shape == (512, 16) and torch.equal(sample["prompt_embeds"][:5], text)


def test_bad_files_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="has no parquet file with a row"):
        FastVideoParquet(tmp_path, as_they_are)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        FastVideoParquet(tmp_path, as_they_are)
    parquet.write_table(pa.table({"video": [b"0"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no column fps: it was not made by FastVideo"):
        FastVideoParquet(tmp_path, as_they_are)
    write(tmp_path, [row(0, *draw(0), vae_latent_shape=[4, 2, 3, 4])])
    with pytest.raises(ValueError, match=r"row 0 of group 0: vae_latent has 288 bytes"):
        FastVideoParquet(tmp_path, as_they_are)[0]
