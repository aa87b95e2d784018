"""A disk without room for the student: said beforehand where it can be, and nothing is left behind."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import struct

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class TestFullDisk:
    def test_teacher_larger_than_the_disk_is_refused_before_anything_is_copied(self, teacher):
        # A real file of the full length, in which nothing is written yet.
        factor = 32
        free = shutil.disk_usage(teacher).free
        while True:
            widths = [32 * factor, 32 * factor, 64 * factor, 64 * factor]
            config = json.loads((teacher / "unet/config.json").read_text()) | {"block_out_channels": widths}
            (teacher / "unet/config.json").write_text(json.dumps(config))
            with torch.device("meta"):
                state = UNetSpatioTemporalConditionModel.from_config(config).state_dict()
            if sum(4 * tensor.numel() for tensor in state.values()) > 4 * free:
                break
            factor *= 2
        header, position = {}, 0
        for key, tensor in state.items():
            stop = position + 4 * tensor.numel()
            header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, stop]}
            position = stop
        text = json.dumps(header).encode()
        file = teacher / WEIGHTS
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        try:
            os.truncate(file, 8 + len(text) + position)
        except OSError:
            pytest.skip("the file system has no files of that length")
        with pytest.raises(OSError, match=r"GB are needed and .* GB are free on the disk") as caught:
            prune_pipeline(teacher, teacher.parent / "student")
        assert caught.value.errno == errno.ENOSPC
        assert [path.name for path in teacher.parent.iterdir()] == ["teacher"]

    @pytest.mark.parametrize(
        ("kind", "limit", "tensor", "file"),
        [
            ("i2v", 5_000_000, "up_blocks.1.attentions.1.", WEIGHTS),
            ("t2v", 1_000_000, "embeddings.token_embedding.", "text_encoder/model.safetensors"),
        ],
        indirect=["kind"],
    )
    def test_failed_write_names_the_file_and_the_tensor(self, kind, teacher, limit, tensor, file):
        # A limit on file sizes fails a write as a full disk does, without filling one.
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)

        def prune() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                kind.prune(teacher, teacher.parent / "student")
            except OSError as error:
                theirs.send(str(error))

        process = context.Process(target=prune)
        process.start()
        theirs.close()
        message = ours.recv()
        process.join()
        assert process.exitcode == 0
        assert "File too large" in message
        assert f"while writing tensor '{tensor}" in message
        assert file in message
        assert [path.name for path in teacher.parent.iterdir()] == ["teacher"]
