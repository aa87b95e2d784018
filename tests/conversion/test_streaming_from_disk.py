"""A large teacher on the disk: what a process that is killed has copied is not copied again, at whatever moment."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_hunyuan_video import TINY_PLAN, tiny_hunyuan_pipeline

from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.serialization import atomic, journal, pipeline_folder, safetensors_copy
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


WEIGHTS = "transformer/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hunyuan") / "teacher"
    tiny_hunyuan_pipeline().save_pretrained(folder, max_shard_size="120KB")
    return folder


@pytest.fixture
def teacher(original, tmp_path):
    """A copy to spoil; the only thing in its parent."""
    return shutil.copytree(original, tmp_path / "teacher")


@pytest.fixture
def large(monkeypatch):
    """All teachers count as so large that they are not hashed, and every piece is noted at once."""
    monkeypatch.setattr(pipeline_folder, "MAX_HASHED_BYTES", 0)
    monkeypatch.setattr(journal, "SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def prune(teacher, **options):
    return prune_pipeline(teacher, teacher.parent / "student", TINY_PLAN, **{"max_shard_size": "100KB", **options})


def weights_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.safetensors*"))}


def killed_after(teacher, owner, function, calls):
    """Prune in a process that is killed within the given call of `owner.function`; whether it came that far."""

    def prune_and_die() -> None:
        left = calls
        whole = getattr(owner, function)

        def die_at_last(*arguments):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*arguments)

        setattr(owner, function, die_at_last)
        prune(teacher)

    process = multiprocessing.get_context("fork").Process(target=prune_and_die)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("owner", "function", "calls"),
    [
        (safetensors_copy, "_write_headers", 3),
        (safetensors_copy, "_write", 2),
        (safetensors_copy, "_write", 150),
        (safetensors_copy, "_write", 300),
        (journal, "write_file", 1),
        (journal.Journal, "_sync", 200),
        (journal.Journal, "__exit__", 1),
        (atomic, "_move_into_place", 1),
    ],
)
def test_killed_at_any_moment_and_gone_on_with(original, teacher, large, monkeypatch, owner, function, calls):
    expected = weights_of(prune_pipeline(original, teacher.parent / "expected", TINY_PLAN, max_shard_size="100KB"))
    assert killed_after(teacher, owner, function, calls)
    assert not (teacher.parent / "student").exists()
    noted = [path.read_text().splitlines()[1:] for path in teacher.parent.glob(f".student.tmp-*/{atomic.PROGRESS}")]
    done = {tuple(line.split()[:2]) for lines in noted for line in lines}

    written = []
    write = safetensors_copy._write
    monkeypatch.setattr(safetensors_copy, "_write", lambda *args: (written.append(args), write(*args)))
    assert weights_of(prune(teacher)) == expected
    again = {(f"{Path(file.name).parent.name}/{Path(file.name).name}", str(start)) for file, _, _, start in written}
    assert again & done == set()
    if calls > 100:
        assert len(done) > 90
    if done:  # else what is left is removed by a call in more than a minute
        assert sorted(path.name for path in teacher.parent.iterdir()) == ["expected", "student", "teacher"]
    assert not (teacher.parent / "student" / atomic.PROGRESS).exists()


def test_a_teacher_that_changed_meanwhile_is_read_anew(teacher, large):
    assert killed_after(teacher, safetensors_copy, "_write", 300)
    file = next(teacher.glob(f"{WEIGHTS}-00001-*"))
    tensors = {name: tensor + 1 for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    student = weights_of(prune(teacher))
    assert student == weights_of(prune_pipeline(teacher, teacher.parent / "anew", TINY_PLAN, max_shard_size="100KB"))


def test_what_the_teacher_has_lost_meanwhile_the_student_has_not(teacher, large):
    (teacher / "LICENSE").write_text("old terms")
    (teacher / "tokenizer/special_tokens.txt").write_text("<old>")
    assert killed_after(teacher, safetensors_copy, "_write", 300)
    assert len(list(teacher.parent.glob(".student.tmp-*/LICENSE"))) == 1
    (teacher / "LICENSE").unlink()
    (teacher / "tokenizer/special_tokens.txt").unlink()
    student = prune(teacher)
    assert not (student / "LICENSE").exists() and not (student / "tokenizer/special_tokens.txt").exists()


def test_a_line_that_was_cut_as_it_was_noted_and_a_file_that_is_gone(teacher, large, monkeypatch):
    assert killed_after(teacher, safetensors_copy, "_write", 300)
    (progress,) = teacher.parent.glob(f".student.tmp-*/{atomic.PROGRESS}")
    progress.write_text(progress.read_text()[:-3])
    next(progress.parent.glob("text_encoder_2/*-00001-*")).unlink()
    student = weights_of(prune(teacher))
    assert student == weights_of(prune_pipeline(teacher, teacher.parent / "anew", TINY_PLAN, max_shard_size="100KB"))


def test_ctrl_c_keeps_what_can_be_gone_on_with(teacher, large, monkeypatch):
    def interrupt(*args):
        if len(written) == 100:
            raise KeyboardInterrupt
        written.append(args)
        write(*args)

    written, write = [], safetensors_copy._write
    with monkeypatch.context() as patch:
        patch.setattr(safetensors_copy, "_write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prune(teacher)
    (progress,) = teacher.parent.glob(f".student.tmp-*/{atomic.PROGRESS}")
    assert len(progress.read_text().splitlines()) > 90
    prune(teacher)


def test_a_disk_that_fills_up_leaves_nothing(teacher, large):
    """A limit on the sizes of files fails a write as a full disk does: in the last tensors of a shard."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
        try:
            prune(teacher, denoisers_only=True)
        except OSError as error:
            theirs.send((error.errno, str(error)))

    process = context.Process(target=run)
    process.start()
    theirs.close()
    code, message = ours.recv()
    process.join()
    assert code == errno.EFBIG and "while writing tensor '" in message and "00001-of-00004" in message
    assert [path.name for path in teacher.parent.iterdir()] == ["teacher"]


def test_what_is_still_to_be_written_must_fit_on_the_disk(teacher, large, monkeypatch):
    total = sum(len(content) for name, content in weights_of(prune(teacher)).items() if name.endswith("safetensors"))
    shutil.rmtree(teacher.parent / "student")
    assert killed_after(teacher, safetensors_copy, "_write", 300)
    free = total // 2 + atomic.SPARE_BYTES
    usage = shutil.disk_usage(teacher)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    prune(teacher)  # more than half is there
    with pytest.raises(OSError, match="GB are needed"):
        prune(teacher, overwrite=True)


class TestHashes:
    def test_a_large_teacher_is_not_hashed_and_its_provenance_says_so(self, teacher, large):
        record = json.loads((prune(teacher) / "transformer/pruning_provenance.json").read_text())
        hashes = {name: entry["sha256"] for name, entry in record["teacher"]["files"].items()}
        assert {name for name, sha256 in hashes.items() if sha256 is None} == {
            name for name in hashes if name.endswith(".safetensors")
        }

    def test_what_is_not_kept_is_not_read(self, teacher, large):
        """NaN in a removed block, and the same in a kept one."""
        state = {}
        for file in sorted(teacher.glob(f"{WEIGHTS}*.safetensors")):
            state |= safetensors.torch.load_file(file)
            file.unlink()
        (teacher / f"{WEIGHTS}.safetensors.index.json").unlink()
        for block, fails in ((1, False), (2, True)):
            state[f"transformer_blocks.{block}.ff.net.2.bias"][3] = torch.nan
            safetensors.torch.save_file(state, teacher / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
            if fails:
                with pytest.raises(CheckpointError, match="holds nan at element 3"):
                    prune(teacher, overwrite=True)
            else:
                prune(teacher)
