"""Which files of a local folder are training data. Each file is used, or it is listed with a reason."""

import io
import os
import shutil
import tarfile

import pytest
from datasets import Dataset, Features, Value, Video
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from written_videos import write_video

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.listed_files import VIDEO_ENDINGS, of_train_split
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import load_video_dataset


# Endings, each with a codec that its container takes.
ENDINGS = {
    **dict.fromkeys(("mp4", "m4v", "mov", "mkv", "ts", "m2ts", "mts", "flv", "3g2", "f4v", "MP4"), "libx264"),
    **dict.fromkeys(("avi", "asf", "3gp", "nut"), "mpeg4"),
    **dict.fromkeys(("mpg", "mpeg", "vob"), "mpeg2video"),
    **{"webm": "libvpx", "ogv": "libvpx", "wmv": "wmv2"},
}


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 20)


def arguments(folder, **options):
    small = {"num_frames": 2, "height": 16, "width": 16, "fps": 5, "cache_dir": str(folder) + "-cache"}
    return VideoDataArguments(**{"train_data_dir": str(folder), **small, **options})


def used_and_skipped(folder, log_folder, **options):
    """Names of the videos of the rows, and reasons by name of what is left out. Nothing is decoded."""
    log = SkipLog(log_folder)
    dataset = load_video_dataset(arguments(folder, **options), log, shuffle=False)
    rows = dataset.read_rows() if options.get("streaming") else dataset.rows
    return sorted(dataset.reader.name(row) for row in rows), {video.name: video.reason for video in log.read()}


def place(folder, names, content=b"x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
class TestVideos:
    @pytest.mark.parametrize(
        "names",
        [
            ["boat.mp4", "steam_train.mp4", "cat.mp4"],
            ["boat/1.mp4", "train/1.mp4", "cat/1.mp4"],
            ["boat/1.mp4", "train/1.mp4", "test/1.mp4"],
            ["boat.mp4", "crash_test.mp4", "validation.mp4"],
            ["train.mp4", "test.mp4"],
            ["test/1.mp4", "validation/1.mp4"],
            ["cats [HD]*/a?.mp4", "a::b/c.mp4", "ümläut/ß.mp4"],
        ],
    )
    def test_words_in_names_decide_nothing(self, tmp_path, names, streaming):
        folder = place(tmp_path / "data [1]*", names)
        assert used_and_skipped(folder, tmp_path / "log", streaming=streaming) == (sorted(names), {})

    def test_a_folder_that_consists_of_splits_gives_the_one_for_training(self, tmp_path, streaming):
        folder = place(tmp_path / "data", ["train/a.mp4", "train/b/c.mp4", "validation/d.mp4", "test/e.mp4"])
        used, skipped = used_and_skipped(folder, tmp_path / "log", streaming=streaming)
        assert used == ["train/a.mp4", "train/b/c.mp4"]
        assert skipped == {"validation/d.mp4": "another split", "test/e.mp4": "another split"}

    def test_what_is_no_video_is_listed(self, tmp_path, streaming):
        others = {
            "cover.jpg": "no video by name",
            "README": "no video by name",
            "notes.txt": "no video by name",
            "more.zip": "an archive",
            ".DS_Store": "hidden",
            ".cache": "hidden",
        }
        names = [name for name in others if name != ".cache"]
        folder = place(tmp_path / "data", ["a.mp4", ".cache/b.mp4", *names])
        assert used_and_skipped(folder, tmp_path / "log", streaming=streaming) == (["a.mp4"], others)

    def test_a_local_folder_given_as_dataset_name_is_read_alike(self, tmp_path, streaming):
        folder = place(tmp_path / "data", ["boat.mp4", "steam_train.mp4"])
        options = {"train_data_dir": None, "dataset_name": str(folder), "streaming": streaming}
        assert used_and_skipped(folder, tmp_path / "log", **options)[0] == ["boat.mp4", "steam_train.mp4"]

    def test_videos_of_every_usual_ending_are_read(self, tmp_path, streaming):
        folder = tmp_path / "data"
        folder.mkdir()
        for ending, codec in ENDINGS.items():
            options = {"size": (96, 128), "fps": 25} if ending in ("mpg", "mpeg", "vob") else {}
            pix_fmt = "yuv420p"
            write_video(folder / f"{ending}.{ending}", 40, codec=codec, pix_fmt=pix_fmt, **options)
        log = SkipLog(tmp_path / "log")
        dataset = load_video_dataset(arguments(folder, streaming=streaming), log, shuffle=False)
        samples = list(dataset) if streaming else [dataset[index] for index in range(len(dataset))]
        assert [str(video) for video in log.read()] == []
        assert sorted(sample["name"] for sample in samples) == sorted(f"{ending}.{ending}" for ending in ENDINGS)


def test_every_ending_that_is_tried_here_is_one_that_is_known():
    assert {ending.lower() for ending in ENDINGS} <= VIDEO_ENDINGS


part = st.text(st.sampled_from("ab.-_ é'[*"), min_size=1, max_size=4).filter(lambda text: text.strip(". "))
word = st.sampled_from(["train", "test", "validation", "steam_train", "metadata"])
ending = st.sampled_from(["", ".mp4", ".WebM", ".txt", ".jpg", ".zip", ".json"])
names = st.sets(
    st.builds(
        lambda folders, stem, ending: "/".join([*folders, stem + ending]),
        st.lists(part | word, max_size=2),
        part | word,
        ending,
    ),
    min_size=1,
    max_size=6,
)


@settings(phases=[Phase.generate])
@given(names)
def test_each_file_is_used_or_listed(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("any")
    there = set()
    for name in sorted(names):
        try:
            place(folder / "data", [name])
        except OSError:  # a file where another name has a folder
            continue
        there.add(name)
    try:
        used, skipped = used_and_skipped(folder / "data", folder / "log")
    except ValueError as error:
        assert "holds no training data" in str(error)
        assert not any(name.lower().endswith((".mp4", ".webm")) and not hidden(name) for name in there)
        return
    assert not set(used) & set(skipped)
    rest = {name for name in there if not any(name == n or name.startswith(f"{n}/") for n in [*used, *skipped])}
    videos = {os.path.splitext(name)[0] for name in [*used, *skipped]}
    assert all(name.endswith(".txt") and name.removesuffix(".txt") in videos for name in rest)  # captions


def hidden(name):
    return any(part.startswith(".") for part in name.split("/"))


@pytest.mark.parametrize(
    ("files", "train"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], [0, 1]),
        (["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001-0f3a.parquet"], [0]),
        (["data/train-00000-of-00001.parquet", "data/holdout-00000-of-00001.parquet"], [0]),
        (["en/train/0000.parquet", "en/test/0000.parquet"], [0]),
        (["train.tar", "val.tar", "dev_2.tar"], [0]),
        (["train-000.tar", "train-001.tar", "more.tar"], [0, 1, 2]),
        (["steam_train.parquet", "crash_test.parquet", "boat.parquet"], [0, 1, 2]),
        (["clips-00000-of-00002.parquet", "clips-00001-of-00002.parquet"], [0, 1]),
        (["trainer.tar", "tests.tar", "devil.tar"], [0, 1, 2]),
    ],
)
def test_tables_of_the_training_split(tmp_path, files, train):
    assert of_train_split(tmp_path, files) == [files[index] for index in train]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["test-00000-of-00001.parquet", "val.parquet"], "no split for training: test-00000"),
        (["train.tar", "test.tar", "boat.tar"], "does not say which files are for training: test.tar .* boat.tar is"),
    ],
)
def test_tables_of_unclear_splits_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        of_train_split(tmp_path, files)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("streaming", [False, True])
class TestTables:
    def test_parquet_of_other_splits_is_listed(self, tmp_path, streaming):
        features = Features(video=Video(decode=False))
        (tmp_path / "ds/data").mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = Dataset.from_dict({"video": [{"bytes": b"x", "path": f"{split}.mp4"}]}, features)
            rows.to_parquet(tmp_path / f"ds/data/{split}-00000-of-00001.parquet")
        used, skipped = used_and_skipped(tmp_path / "ds", tmp_path / "log", streaming=streaming)
        assert used == ["train.mp4"]
        assert skipped == {f"data/{s}-00000-of-00001.parquet": "another split" for s in ("validation", "test")}

    def test_tars_of_other_splits_are_listed(self, tmp_path, streaming):
        (tmp_path / "ds").mkdir()
        for split in ("train-0", "train-1", "test-0"):
            write_tar(tmp_path / f"ds/{split}.tar", {f"{split}.mp4": b"x"})
        used, skipped = used_and_skipped(tmp_path / "ds", tmp_path / "log", streaming=streaming)
        assert used == ["train-0.mp4", "train-1.mp4"] and skipped == {"test-0.tar": "another split"}

    def test_tars_hold_videos_of_any_endings(self, tmp_path, clip, streaming):
        (tmp_path / "ds").mkdir()
        content = clip.read_bytes()
        members = {
            "a.mp4": content,
            "a.txt": b"one",
            "b.webm": content,
            "sub/c.left.MKV": content,
            "c.right.ts": content,
        }
        write_tar(tmp_path / "ds/0.tar", {**members, "d.jpg": b"", "e": b""})
        used, _ = used_and_skipped(tmp_path / "ds", tmp_path / "log", streaming=streaming)
        assert used == ["(no video)", "a.mp4", "b.webm", "c.right.ts", "sub/c.left.MKV"]

    def test_a_changed_tar_is_read_anew(self, tmp_path, streaming):
        (tmp_path / "ds").mkdir()
        for name in ("a.mp4", "b.mp4"):
            write_tar(tmp_path / "ds/0.tar", {name: b"x"})
            assert used_and_skipped(tmp_path / "ds", tmp_path / "log", streaming=streaming)[0] == [name]

    def test_sparse_members_are_not_unpacked(self, tmp_path, streaming):
        (tmp_path / "ds").mkdir()
        huge = tarfile.TarInfo("huge.mp4")
        # As GNU tar writes a file of 2 ** 40 bytes without content.
        huge.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(2**40)}
        huge.pax_headers |= {"GNU.sparse.map": f"{2**40},0"}
        with tarfile.open(tmp_path / "ds/0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(huge)
            small = tarfile.TarInfo("small.mp4")
            small.size = 1
            tar.addfile(small, io.BytesIO(b"x"))
        with tarfile.open(tmp_path / "ds/0.tar") as tar:
            assert tar.next().size == 2**40
        assert used_and_skipped(tmp_path / "ds", tmp_path / "log", streaming=streaming)[0] == ["small.mp4"]

    def test_videos_beside_tables_that_hold_their_bytes_are_listed(self, tmp_path, streaming):
        place(tmp_path / "ds", ["other.mp4", "more.zip"])
        write_tar(tmp_path / "ds/0.tar", {"a.mp4": b"x"})
        used, skipped = used_and_skipped(tmp_path / "ds", tmp_path / "log", streaming=streaming)
        assert used == ["a.mp4"] and skipped == dict.fromkeys(["other.mp4", "more.zip"], "beside .tar files")

    def test_names_with_wildcards_are_names(self, tmp_path, streaming):
        folder = place(tmp_path / "[ab]*?", ["a.mp4"])
        for name in ("[x].parquet", "x.parquet"):
            Dataset.from_dict({"video": [name.encode()]}).to_parquet(folder / name)
        (folder / "x.parquet").unlink()
        assert len(used_and_skipped(folder, tmp_path / "log", streaming=streaming)[0]) == 1
        place(folder, ["[t].csv"], b"video\na.mp4\n")
        assert used_and_skipped(folder, tmp_path / "log", streaming=streaming)[0] == ["a.mp4"]

    def test_a_path_that_datasets_takes_for_an_address_is_refused(self, tmp_path, streaming):
        Dataset.from_dict({"video": [b"x"]}).to_parquet(place(tmp_path / "ab", ["note"]) / "t.parquet")
        (tmp_path / "ab").rename(tmp_path / "a::b")
        with pytest.raises(ValueError, match="takes it for an address: rename it"):
            used_and_skipped(tmp_path / "a::b", tmp_path / "log", streaming=streaming)


class TestLinks:
    @pytest.mark.parametrize("name", ["a.mp4", "sub", "t.parquet", "t.csv", "metadata.jsonl", "a.txt"])
    def test_that_lead_out_are_refused(self, tmp_path, name):
        place(tmp_path / "data", ["b.mp4"])
        place(tmp_path / "private", ["c.mp4"])
        target = tmp_path / "private" if name == "sub" else tmp_path / "private/c.mp4"
        os.symlink(target, tmp_path / "data" / name)
        with pytest.raises(ValueError, match=f"{name} is a link that leads out"):
            used_and_skipped(tmp_path / "data", tmp_path / "log")

    def test_that_stay_inside_are_followed_to_files_only(self, tmp_path):
        folder = place(tmp_path / "data", ["sub/a.mp4"])
        for name, target in {
            "b.mp4": "sub/a.mp4",
            "again": "sub",
            "loop.mp4": "loop.mp4",
            "up": ".",
            "no.mp4": "x",
        }.items():
            os.symlink(target, folder / name)
        os.mkfifo(folder / "pipe.mp4")
        used, skipped = used_and_skipped(folder, tmp_path / "log")
        assert used == ["b.mp4", "sub/a.mp4"]
        assert skipped == {
            **dict.fromkeys(["again", "up"], "link to a folder"),
            **dict.fromkeys(["loop.mp4", "no.mp4", "pipe.mp4"], "no regular file"),
        }

    def test_of_the_hub_s_cache_are_followed(self, tmp_path):
        blobs = place(tmp_path / "datasets--a--b/blobs", ["0f3a"])
        snapshot = tmp_path / "datasets--a--b/snapshots/77"
        snapshot.mkdir(parents=True)
        os.symlink(os.path.relpath(blobs / "0f3a", snapshot), snapshot / "a.mp4")
        assert used_and_skipped(snapshot, tmp_path / "log")[0] == ["a.mp4"]
        shutil.move(blobs, tmp_path / "private")
        os.symlink(tmp_path / "private", blobs)
        with pytest.raises(ValueError, match="leads out"):
            used_and_skipped(snapshot, tmp_path / "log")

    def test_a_name_that_is_not_utf_8_is_listed(self, tmp_path):
        folder = place(tmp_path / "data", ["a.mp4"])
        try:
            (folder / os.fsdecode(b"\xff.mp4")).touch()
        except OSError:
            pytest.skip("the file system takes no such name")
        assert used_and_skipped(folder, tmp_path / "log") == (["a.mp4"], {"\\xff.mp4": "name is not UTF-8"})


def test_a_folder_without_videos_says_what_it_holds(tmp_path):
    folder = place(tmp_path / "data", ["a.zip", "b.zip", "c.jpg"])
    with pytest.raises(ValueError, match=r"It holds 2 \.zip, 1 \.jpg \(archives are to be unpacked first\)"):
        used_and_skipped(folder, tmp_path / "log")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"video,caption\n\xff\xfe.mp4,x\n"),
        ("t.csv", b"video,caption\na,b,c,d\n"),
        ("t.csv", b'video,caption\na,"b\n'),
        ("t.csv", b""),
        ("t.parquet", b"PAR1 nothing"),
        ("t.tar", b"nothing"),
        ("t.tar", b""),
        ("t.tar", b"a.mp4" + bytes(95) + b"0000644\x00" * 3 + b"77777777777\x00" + bytes(400)),
        ("metadata.jsonl", b'{"file_name": "a.mp4"'),
        ("metadata.jsonl", b'["a.mp4"]'),
        ("metadata.jsonl", b'{"name": "a.mp4"}'),
        ("metadata.jsonl", b'{"file_name": 7}'),
        ("metadata.jsonl", b'{"file_name": "\\u0000.mp4"}'),
        ("metadata.jsonl", b'{"file_name": "../b.mp4"}'),
        ("metadata.jsonl", b'{"file_name": "hf://datasets/a/b/c.mp4"}'),
        ("metadata.jsonl", b"[" * 100_000),
        ("metadata.csv", b"file_name\na.mp4,b,c\n"),
        ("metadata.csv", b"file_name\n" + b"a" * 200_000),
        ("metadata.parquet", b"nothing"),
        ("a.txt", b"\xff\xfe\xfd"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, streaming):
    folder = place(tmp_path / "data", ["a.mp4"])
    place(folder, [name], content)
    with pytest.raises(ValueError, match=name):
        used_and_skipped(folder, tmp_path / "log", streaming=streaming)


def test_captions_that_are_no_text_are_refused(tmp_path):
    folder = place(tmp_path / "data", ["a.mp4"])
    for value in ("7", '["x"]', r'"\ud800"'):
        (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.mp4", "caption": {value}}}')
        with pytest.raises(ValueError, match=r"a\.mp4 holds no text under 'caption'"):
            used_and_skipped(folder, tmp_path / "log")


def test_a_column_of_other_things_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    odd = {"int": [7], "list": [["a"]], "struct": [{"bytes": "a.mp4", "path": "a.mp4"}], "other": [{"url": "a.mp4"}]}
    for column in odd.values():
        Dataset.from_dict({"video": column}).to_parquet(tmp_path / "data/t.parquet")
        with pytest.raises(ValueError, match=r"Column 'video' of .* should hold videos"):
            used_and_skipped(tmp_path / "data", tmp_path / "log")
    features = Features(video=Value("binary"), caption=Value("int64"))
    Dataset.from_dict({"video": [b"x"], "caption": [7]}, features).to_parquet(tmp_path / "data/t.parquet")
    with pytest.raises(ValueError, match=r"Column 'caption' of .* should hold text; it holds"):
        used_and_skipped(tmp_path / "data", tmp_path / "log")
