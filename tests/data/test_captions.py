"""Text to video is trained on captions, and says so where there are none; image to video does without."""

import csv
import io
import json
import tarfile

import pytest
from datasets import Dataset
from written_videos import write_video

from vdmini_diffusers.data.arguments import TextToVideoDataArguments, VideoDataArguments
from vdmini_diffusers.data.skipped_videos import SkipLog, TooFewUsableVideos
from vdmini_diffusers.data.video_dataset import load_video_dataset


NAMES = [f"clip{index}.mp4" for index in range(3)]
CAPTIONS = [f"a photo of {index} cats, ß" for index in range(3)]
LAYOUTS = ["csv", "metadata.jsonl", "metadata.csv", "metadata.parquet", "parquet", "tar with json"]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 20).read_bytes()


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def lay_out(folder, layout, content, column, captions=CAPTIONS):
    """Three videos, with captions in `column` where there is one."""
    folder.mkdir()
    rows = [{column: caption, "score": "5"} for caption in captions]
    if layout == "parquet":
        Dataset.from_list([{"video": content, **row} for row in rows]).to_parquet(folder / "0.parquet")
        return folder
    if layout == "tar with json":
        pairs = [
            [(name, content), (f"{name[:-4]}.json", json.dumps(row).encode())]
            for name, row in zip(NAMES, rows, strict=True)
        ]
        write_tar(folder / "0.tar", [member for pair in pairs for member in pair])
        return folder
    for name in NAMES:
        (folder / name).write_bytes(content)
    named = [{"file_name": name, **row} for name, row in zip(NAMES, rows, strict=True)]
    if layout == "csv":
        write_csv(folder / "a.csv", [{"video": name, **row} for name, row in zip(NAMES, rows, strict=True)])
    elif layout == "metadata.jsonl":
        (folder / layout).write_text("\n".join(map(json.dumps, named)))
    elif layout == "metadata.csv":
        write_csv(folder / layout, named)
    elif layout == "metadata.parquet":
        Dataset.from_list(named).to_parquet(folder / layout)
    return folder


def load(folder, kind=TextToVideoDataArguments, log=None, **options):
    small = {"num_frames": 2, "height": 16, "width": 16, "fps": 5, "cache_dir": f"{folder}-cache"}
    args = kind(train_data_dir=str(folder), **small, **options)
    return load_video_dataset(args, log or SkipLog(f"{folder}-log"), shuffle=False)


def captions_of(dataset):
    samples = dataset if hasattr(dataset, "read_rows") else (dataset[index] for index in range(len(dataset)))
    return [sample["caption"] for sample in samples]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
class TestColumns:
    @pytest.mark.parametrize("column", ["caption", "text", "prompt", "description"])
    def test_usual_names(self, tmp_path, layout, content, column, streaming):
        folder = lay_out(tmp_path / "data", layout, content, column)
        assert captions_of(load(folder, streaming=streaming)) == CAPTIONS

    def test_other_names_are_an_error_that_lists_them_before_anything_is_decoded(
        self, tmp_path, layout, content, streaming
    ):
        folder = lay_out(tmp_path / "data", layout, b"no video", "title")
        with pytest.raises(ValueError, match=r"'title'.*none is called caption.*--caption_column"):
            load(folder, streaming=streaming)
        with pytest.raises(ValueError, match=r"--caption_column 'titel' is not in the dataset; it has .*'title'"):
            load(folder, streaming=streaming, caption_column="titel")
        with pytest.raises(ValueError, match="--caption_column 'titel' is not"):
            load(folder, kind=VideoDataArguments, streaming=streaming, caption_column="titel")

    def test_the_name_that_is_asked_for(self, tmp_path, layout, content, streaming):
        folder = lay_out(tmp_path / "data", layout, content, "title")
        assert captions_of(load(folder, streaming=streaming, caption_column="title")) == CAPTIONS
        assert captions_of(load(folder, kind=VideoDataArguments, streaming=streaming)) == ["", "", ""]

    def test_a_video_without_one_is_skipped_and_listed(self, tmp_path, layout, content, streaming):
        folder = lay_out(tmp_path / "data", layout, content, "caption", [CAPTIONS[0], "  ", CAPTIONS[2]])
        log = SkipLog(tmp_path / "log")
        found = captions_of(load(folder, log=log, streaming=streaming))
        assert set(found) == {CAPTIONS[0], CAPTIONS[2]}
        assert [video.reason for video in log.read()] == ["no caption"]
        assert sorted(captions_of(load(folder, kind=VideoDataArguments))) == sorted(["  ", CAPTIONS[0], CAPTIONS[2]])

    def test_all_empty_is_an_error(self, tmp_path, layout, content, streaming):
        folder = lay_out(tmp_path / "data", layout, content, "caption", ["", " ", "\n"])
        if streaming:
            with pytest.raises(TooFewUsableVideos, match=r"3 videos tried, 0 can be used.* no caption \("):
                captions_of(load(folder, streaming=True))
        else:
            with pytest.raises(ValueError, match="are all empty"):
                load(folder)


@pytest.mark.parametrize("streaming", [False, True])
class TestTextFiles:
    def test_beside_the_videos(self, tmp_path, content, streaming):
        folder = lay_out(tmp_path / "data", "none", content, "none")
        for name, caption in zip(NAMES, CAPTIONS, strict=True):
            (folder / name).with_suffix(".txt").write_text(f"\ufeff{caption}\n", encoding="utf-8")
        log = SkipLog(tmp_path / "log")
        assert captions_of(load(folder, log=log, streaming=streaming)) == CAPTIONS and log.read() == []

    def test_fill_in_where_metadata_has_none(self, tmp_path, content, streaming):
        folder = lay_out(tmp_path / "data", "metadata.jsonl", content, "caption", [CAPTIONS[0], "", CAPTIONS[2]])
        (folder / "clip1.txt").write_text("beside")
        (folder / "clip2.txt").write_text("not this one")
        assert captions_of(load(folder, streaming=streaming)) == [CAPTIONS[0], "beside", CAPTIONS[2]]

    def test_in_tars(self, tmp_path, content, streaming):
        (tmp_path / "data").mkdir()
        write_tar(tmp_path / "data/0.tar", [("a.mp4", content), ("a.txt", CAPTIONS[0].encode()), ("b.webm", content)])
        log = SkipLog(tmp_path / "log")
        assert set(captions_of(load(tmp_path / "data", log=log, streaming=streaming))) == {CAPTIONS[0]}
        assert [(video.name, video.reason) for video in log.read()] == [("b.webm", "no caption")]

    def test_none_at_all(self, tmp_path, content, streaming):
        folder = lay_out(tmp_path / "data", "none", content, "none")
        (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
        with pytest.raises(ValueError, match=r"has none: of its columns \[\].*in clip.txt beside clip.mp4"):
            load(folder, streaming=streaming)
        assert captions_of(load(folder, kind=VideoDataArguments, streaming=streaming)) == ["", "", ""]


def test_metadata_of_subfolders_and_several_captions_of_a_video(tmp_path, content):
    folder = lay_out(tmp_path / "data", "none", content, "none")
    (folder / "sub").mkdir()
    (folder / "sub/deep.bin").write_bytes(content)
    lines = [
        {"file_name": "deep.bin", "text": "one"},
        {"file_name": "deep.bin", "text": "two"},
        {"file_name": "no.mp4"},
    ]
    (folder / "sub/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    log = SkipLog(tmp_path / "log")
    dataset = load(folder, kind=VideoDataArguments, log=log)
    assert captions_of(dataset) == ["", "", "", "one", "two"]
    assert [dataset.reader.name(row) for row in dataset.rows] == [*NAMES, "sub/deep.bin", "sub/deep.bin"]
    assert [(video.name, video.reason) for video in log.read()] == [("sub/no.mp4", "file missing")]
