import json
import os

import pytest
import torch
from tiny import tiny_image, tiny_svd_pipeline
from torch.utils.data import DataLoader

from vdmini_diffusers.data.latents import (
    LatentShards,
    PrecomputedLatents,
    lock_for_writing,
    write_shard,
)
from vdmini_diffusers.data.skipped_videos import SkipLog, SkippedVideo
from vdmini_diffusers.data.video_decoding import UnusableVideo
from vdmini_diffusers.families.svd import encode_image_to_video


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_svd_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": 2 * torch.rand(3, 4, 3, 16, 16, generator=generator) - 1,
        "fps": torch.tensor([7, 7, 12]),
        "motion_bucket_id": torch.tensor([127, 30, 255]),
    }


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def encode(pipe, batch, **options):
    return encode_image_to_video(batch, pipe, **options)


class TestEncoding:
    def test_conditions_are_those_that_the_pipeline_gives_its_unet(self, pipe):
        seen = {}

        def watch(module, args, kwargs):
            seen.update(kwargs, sample=args[0])

        image = tiny_image()
        handle = pipe.unet.register_forward_pre_hook(watch, with_kwargs=True)
        options = {"height": 16, "width": 16, "fps": 9, "motion_bucket_id": 50, "noise_aug_strength": 0.3}
        pipe(image, num_inference_steps=1, max_guidance_scale=1, generator=generators(3)[0], **options)
        handle.remove()

        frames = pipe.video_processor.preprocess(image)[:, None].repeat(1, 2, 1, 1, 1)
        batch = {"pixel_values": frames, "fps": [9], "motion_bucket_id": [50]}
        found = encode(pipe, batch, noise_aug_strength=0.3, generators=generators(3))
        torch.testing.assert_close(found["image_latents"], seen["sample"][:, 0, 4:], atol=1e-6, rtol=0)
        assert torch.equal(found["image_embeds"], seen["encoder_hidden_states"])
        assert torch.equal(found["added_time_ids"], seen["added_time_ids"])

    def test_latents(self, pipe, batch):
        found = encode(pipe, batch)
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
            "latents": (3, 4, 4, 8, 8),
            "image_latents": (3, 4, 8, 8),
            "image_embeds": (3, 1, 16),
            "added_time_ids": (3, 3),
        }
        assert not any(tensor.requires_grad for tensor in found.values())
        with torch.no_grad():
            mode = pipe.vae.encode(batch["pixel_values"][1]).latent_dist.mode()
        torch.testing.assert_close(found["latents"][1], mode * pipe.vae.config.scaling_factor)
        torch.testing.assert_close(found["added_time_ids"][2], torch.tensor([11, 255, 0.02]))

    def test_neither_batch_nor_chunks_matter(self, pipe, batch):
        whole = encode(pipe, batch, generators=generators(0, 1, 2))
        chunked = encode(pipe, batch, generators=generators(0, 1, 2), encode_chunk_size=5)
        second = encode(pipe, {k: v[1:2] for k, v in batch.items()}, generators=generators(1))
        for name, tensor in whole.items():
            torch.testing.assert_close(chunked[name], tensor)
            torch.testing.assert_close(second[name], tensor[1:2])

    def test_a_half_precision_vae_encodes_in_float32(self, batch):
        pipe = tiny_svd_pipeline()
        pipe.vae.half()
        half = encode(pipe, batch, generators=generators(0, 1, 2))
        assert half["latents"].dtype == torch.float32 and pipe.vae.dtype == torch.float16
        pipe.vae.float()
        assert torch.equal(half["latents"], encode(pipe, batch)["latents"])

    def test_bad_shapes(self, pipe, batch):
        with pytest.raises(ValueError, match=r"multiples of 2; got \(3, 4, 3, 15, 16\)"):
            encode(pipe, batch | {"pixel_values": batch["pixel_values"][..., :15, :]})
        with pytest.raises(ValueError, match="each of the 3 samples is needed; got 1"):
            encode(pipe, batch, generators=generators(0))


class Rows:
    """Stands where `ClipReader` does: rows are numbers, of which odd ones cannot be used."""

    def name(self, row):
        return f"{row}.mp4"

    def __call__(self, row):
        if row % 2:
            raise UnusableVideo("broken")
        return {"pixel_values": torch.full((2, 3), float(row)), "name": self.name(row), "caption": f"Nummer {row} ß"}


def double(batch):
    return {"latents": 2 * batch["pixel_values"], "mean": batch["pixel_values"].mean(dim=(1, 2))}


@pytest.fixture
def write(tmp_path):
    def write(folder, shards=(0, 1, 2), num_threads=0, settings=None, encode=double):
        writer = LatentShards(tmp_path / folder, settings or {"seed": 1})
        log = SkipLog(tmp_path / folder / "skipped")
        for shard in shards:
            rows = range(8 * shard, 8 * shard + 8)
            options = {"batch_size": 3, "num_threads": num_threads}
            write_shard(writer, shard, rows, Rows(), encode, log, **options)
        return writer, log

    return write


class TestShards:
    def test_round_trip(self, write, tmp_path):
        writer, log = write("a")
        assert writer.finish(log.read()) == 12
        data = PrecomputedLatents(tmp_path / "a")
        assert len(data) == 12 and data.settings == {"seed": 1}
        for index in (11, 0, 5, 4, 3, 10):
            assert torch.equal(data[index]["latents"], torch.full((2, 3), 4.0 * index))
            assert data[index]["mean"] == 2 * index
            assert data.info(index) == {"name": f"{2 * index}.mp4", "caption": f"Nummer {2 * index} ß"}
        manifest = json.loads((tmp_path / "a/manifest.json").read_text())
        assert [video["name"] for video in manifest["skipped"]] == sorted(f"{i}.mp4" for i in range(1, 24, 2))
        batches = DataLoader(data, batch_size=6, num_workers=2)
        assert torch.cat([batch["mean"] for batch in batches]).tolist() == list(range(0, 24, 2))
        for index in (12, -1):
            with pytest.raises(IndexError):
                data[index]

    def test_threads_do_not_matter(self, write, tmp_path):
        write("a"), write("b", num_threads=3)
        for path in (tmp_path / "a").glob("latents*"):
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()

    def test_a_shard_is_there_when_it_is_complete(self, write, tmp_path):
        def fails_later(batch):
            if batch["name"][0] == "14.mp4":
                raise KeyboardInterrupt
            return double(batch)

        with pytest.raises(KeyboardInterrupt):
            write("a", encode=fails_later)
        writer, _ = write("a", shards=())
        assert [writer.is_finished(shard) for shard in range(3)] == [True, False, False]
        with pytest.raises(ValueError, match="not finished: run the command that made it again"):
            PrecomputedLatents(tmp_path / "a")

    def test_a_shard_without_samples(self, tmp_path):
        writer = LatentShards(tmp_path, {})
        writer.write(0, [], [])
        writer.write(1, [{"latents": torch.ones(2, dtype=torch.bfloat16)}], [{"name": "a", "caption": ""}])
        assert writer.finish([SkippedVideo("b", "broken", "")]) == 1
        assert PrecomputedLatents(tmp_path)[0]["latents"].dtype == torch.bfloat16

    def test_other_settings_are_refused(self, write):
        write("a")
        with pytest.raises(ValueError, match="other settings: seed was 1 and is 2"):
            write("a", settings={"seed": 2})

    def test_settings_that_failed_before_the_first_shard_bind_nobody(self, write, tmp_path):
        write("a", shards=())
        write("a", settings={"seed": 2}, shards=())
        assert json.loads((tmp_path / "a/manifest.json").read_text())["settings"] == {"seed": 2}
        write("a", settings={"seed": 2}, shards=(0,))
        with pytest.raises(ValueError, match="other settings: seed was 2 and is 1"):
            write("a", shards=())

    def test_other_folders_are_refused(self, write, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a/model.safetensors").touch()
        with pytest.raises(ValueError, match=r"no manifest.json but holds model.safetensors"):
            write("a")
        with pytest.raises(ValueError, match=r"no manifest.json: make it with"):
            PrecomputedLatents(tmp_path)

    def test_a_file_cut_short_is_found(self, write, tmp_path):
        writer, log = write("a")
        writer.finish(log.read())
        path = tmp_path / "a/latents-00001.safetensors"
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=f"should have {size:,} bytes and has {size - 1:,}"):
            PrecomputedLatents(tmp_path / "a")
        path.unlink()
        with pytest.raises(ValueError, match="and has 0"):
            PrecomputedLatents(tmp_path / "a")

    @pytest.mark.parametrize("damage", ["cut", "missing", "no names", "names cut", "names of another type"])
    def test_a_damaged_shard_is_made_again(self, write, tmp_path, damage):
        writer, log = write("a")
        writer.finish(log.read())
        path = tmp_path / "a/latents-00001.safetensors"
        names = path.with_suffix(".json")
        whole = {file: file.read_bytes() for file in (tmp_path / "a").glob("latents*")}
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "missing":
            path.unlink()
        elif damage == "no names":
            names.unlink()
        elif damage == "names cut":
            names.write_bytes(names.read_bytes()[:-5])
        else:
            names.write_text("[]")
        assert [writer.is_finished(shard) for shard in range(3)] == [True, False, True]
        write("a", shards=[shard for shard in range(3) if not writer.is_finished(shard)])
        writer.finish(log.read())
        assert {file: file.read_bytes() for file in (tmp_path / "a").glob("latents*")} == whole
        assert len(PrecomputedLatents(tmp_path / "a")) == 12

    def test_a_second_run_is_refused_until_the_first_has_ended(self, tmp_path):
        first, second = lock_for_writing(tmp_path / "a"), lock_for_writing(tmp_path / "a")
        refused = pytest.raises(ValueError, match=r"Another run is writing into .*a: wait")
        with first, lock_for_writing(tmp_path / "b"), refused, second:
            pass
        (tmp_path / "a/.latents-00000.json.tmp-7f").touch()  # as a killed run leaves it
        with lock_for_writing(tmp_path / "a"):
            assert [path.name for path in (tmp_path / "a").iterdir() if path.name != ".lock"] == []

    def test_writers_of_one_file_do_not_share_a_temporary_name(self, tmp_path, monkeypatch):
        names = []
        replace = os.replace
        monkeypatch.setattr("os.replace", lambda a, b: names.append(a) or replace(a, b))
        for _ in range(2):
            LatentShards(tmp_path, {}).write(0, [], [])
        assert len(names) == len(set(names)) == 5  # the manifest once, and two files twice


def manifest_of(folder, **changes):
    """A folder of two shards whose manifest is changed."""
    shards = LatentShards(folder, {})
    for shard in range(2):
        shards.write(shard, [{"latents": torch.ones(2)}], [{"name": "a", "caption": "b"}])
    shards.finish([])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1] |= changes.pop("shard", {})
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


ODD_TEXTS = ["", "[]", "null", "{", "[" * 100_000, "1" * 5000, "\udcff", '{"complete": false}']


class TestFoldersFromElsewhere:
    @pytest.mark.parametrize(
        "name", ["../b/latents-00001.safetensors", "model.safetensors", "sub/latents-00001.safetensors", "absolute"]
    )
    def test_only_shards_in_the_folder_are_read(self, tmp_path, name):
        manifest_of(tmp_path / "b")
        name = str(tmp_path / "b/latents-00001.safetensors") if name == "absolute" else name
        manifest_of(tmp_path / "a", shard={"file": name})
        with pytest.raises(ValueError, match=r"manifest\.json names .*, which is not the name of a shard"):
            PrecomputedLatents(tmp_path / "a")

    @pytest.mark.parametrize("ending", ["safetensors", "json"])
    def test_links_that_lead_out_are_not_followed(self, tmp_path, ending):
        manifest_of(tmp_path / "b"), manifest_of(tmp_path / "a")
        path = tmp_path / f"a/latents-00001.{ending}"
        path.unlink()
        path.symlink_to(tmp_path / f"b/latents-00001.{ending}")
        with pytest.raises(ValueError, match=f"latents-00001.{ending} is a link that leads out"):
            PrecomputedLatents(tmp_path / "a")
        path.unlink()
        path.symlink_to(path)  # a loop
        with pytest.raises(ValueError, match=f"latents-00001.{ending}"):
            PrecomputedLatents(tmp_path / "a").info(1)

    @pytest.mark.parametrize(
        "changes",
        [
            {"complete": "yes"},
            {"settings": []},
            {"shards": {}},
            {"shards": ["latents-00000.safetensors"]},
            {"shard": {"file": 7}},
            {"shard": {"file": "latents-00001.safetensors\0"}},
            {"shard": {"num_bytes": "7"}},
            {"shard": {"num_bytes": 1e300}},
            {"shard": {"num_samples": -1}},
            {"shard": {"num_samples": True}},
            {"shard": {"num_samples": 10**30}},
        ],
    )
    def test_a_malformed_manifest_is_named(self, tmp_path, changes):
        with pytest.raises(ValueError, match=r"manifest\.json"):
            PrecomputedLatents(manifest_of(tmp_path, **changes))

    @pytest.mark.parametrize("text", ODD_TEXTS, ids=range(8))
    def test_what_is_no_manifest_is_named(self, tmp_path, text):
        (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
        for read in (PrecomputedLatents, lambda folder: LatentShards(folder, {})):
            with pytest.raises(ValueError, match=r"manifest\.json"):
                read(tmp_path)

    def test_more_samples_than_there_are(self, tmp_path):
        data = PrecomputedLatents(manifest_of(tmp_path, shard={"num_samples": 2}))
        with pytest.raises(ValueError, match=r"latents-00001\.safetensors does not hold the samples"):
            data[2]
        with pytest.raises(ValueError, match=r"latents-00001\.json names 1 samples, fewer than"):
            data.info(2)
