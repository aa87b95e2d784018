import csv
import io
import json
import os
import shutil
import tarfile

import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, Features, Value, Video
from torch.utils.data import DataLoader
from written_videos import indices, write_sound, write_video

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.skipped_videos import SkipLog, TooFewUsableVideos, summarize
from vdmini_diffusers.data.video_dataset import ClipReader, load_video_dataset
from vdmini_diffusers.data.video_decoding import UnusableVideo


GOOD = [f"good{i}.mp4" for i in range(6)]
BAD = {"empty.mp4": "broken", "short.mp4": "too short", "sound.mp4": "no video stream", "text.mp4": "broken"}
LAYOUTS = ("videofolder", "parquet", "webdataset", "csv")


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    """`datasets` waits for five seconds at the end of a shuffled stream, torch for workers after an error."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)  # older ones have none
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Six good videos and four that cannot be used."""
    folder = tmp_path_factory.mktemp("videos")
    for index, name in enumerate(GOOD):
        write_video(folder / name, 30 + index, 10)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video at all\n" * 50)
    write_video(folder / "short.mp4", 1)
    write_sound(folder / "sound.mp4")
    return folder


def rows_of(videos):
    """Good and bad ones in turns."""
    return [{"video": path.name, "caption": f"a {path.stem}, grey"} for path in sorted(videos.iterdir())]


def lay_out(layout, videos, folder):
    folder.mkdir()
    rows = rows_of(videos)
    if layout == "videofolder":
        shutil.copytree(videos, folder, dirs_exist_ok=True)
        lines = [json.dumps({"file_name": row["video"], "caption": row["caption"]}) for row in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    elif layout == "parquet":
        content = [{"bytes": (videos / row["video"]).read_bytes(), "path": row["video"]} for row in rows]
        table = {"video": content, "caption": [row["caption"] for row in rows], "extra": [None] * len(rows)}
        features = Features(video=Video(decode=False), caption=Value("string"), extra=Value("int32"))
        for part in range(2):
            half = Dataset.from_dict({name: column[part::2] for name, column in table.items()}, features=features)
            half.to_parquet(folder / f"train-{part}.parquet")
    elif layout == "webdataset":
        for part in range(2):
            with tarfile.open(folder / f"{part}.tar", "w") as tar:
                for row in rows[part::2]:
                    stem = row["video"].removesuffix(".mp4")
                    files = {"mp4": (videos / row["video"]).read_bytes(), "txt": row["caption"].encode()}
                    for suffix, content in files.items():
                        member = tarfile.TarInfo(f"{stem}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    else:
        shutil.copytree(videos, folder / "video")
        write_csv(folder / "OpenVid-1M.csv", rows)
    return folder


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["aesthetic score", "video", "camera motion", "caption"])
        writer.writeheader()
        writer.writerows({"aesthetic score": 5.5, "camera motion": "pan", **row} for row in rows)


def arguments(folder, **options):
    small = {"num_frames": 4, "height": 24, "width": 32, "fps": 5}
    return VideoDataArguments(train_data_dir=str(folder), **(small | options))


def load(folder, log_folder, *, load_options=None, **options):
    return load_video_dataset(arguments(folder, **options), SkipLog(log_folder), **(load_options or {}))


def by_name(samples):
    return {sample["name"]: sample for sample in samples}


@pytest.fixture(scope="session")
def expected(videos, tmp_path_factory):
    """Each video's sample, from a plain folder."""
    folder = tmp_path_factory.mktemp("expected")
    dataset = load(lay_out("videofolder", videos, folder / "data"), folder / "log", load_options={"seed": 5})
    return by_name(dataset.reader(row) for row in dataset.rows if dataset.reader.name(row) in GOOD)


@pytest.mark.parametrize("layout", LAYOUTS)
class TestLayouts:
    def test_map_style(self, layout, videos, expected, tmp_path):
        dataset = load(lay_out(layout, videos, tmp_path / "data"), tmp_path / "log", load_options={"seed": 5})
        assert len(dataset) == 10
        samples = [dataset[index] for index in range(10)]
        found = by_name(samples)
        assert sorted(found) == GOOD
        for name, sample in found.items():
            assert torch.equal(sample["pixel_values"], expected[name]["pixel_values"])
            assert sample["caption"] == f"a {name.removesuffix('.mp4')}, grey"
        assert {video.name: video.reason for video in dataset.skip_log.read()} == BAD
        # An unusable one gives the next usable one.
        names = [dataset.reader.name(row) for row in dataset.rows]
        for index, sample in enumerate(samples):
            following = (names[index:] + names[:index])[: 1 + sum(name in BAD for name in names)]
            assert sample["name"] == next(name for name in following if name in GOOD)

    def test_streaming(self, layout, videos, expected, tmp_path):
        folder = lay_out(layout, videos, tmp_path / "data")
        dataset = load(folder, tmp_path / "log", streaming=True, load_options={"seed": 5})
        samples = list(dataset)
        assert sorted(sample["name"] for sample in samples) == GOOD
        for sample in samples:
            assert torch.equal(sample["pixel_values"], expected[sample["name"]]["pixel_values"])
            assert sample["caption"] == f"a {sample['name'].removesuffix('.mp4')}, grey"
        assert {video.name: video.reason for video in dataset.skip_log.read()} == BAD

    def test_ranks_divide_a_stream(self, layout, videos, tmp_path):
        folder = lay_out(layout, videos, tmp_path / "data")
        names = []
        for rank in range(2):
            options = {"seed": 5, "process_index": rank, "num_processes": 2}
            dataset = load(folder, tmp_path / "log", streaming=True, load_options=options)
            dataset.set_epoch(3)
            names += [sample["name"] for sample in dataset]
        assert sorted(names) == GOOD


def test_a_sample(expected):
    sample = expected["good0.mp4"]
    assert sample["pixel_values"].shape == (4, 3, 24, 32) and sample["pixel_values"].dtype == torch.float32
    assert sample["pixel_values"].min() >= -1 and sample["pixel_values"].max() <= 1
    assert (sample["fps"], sample["motion_bucket_id"]) == (5, 127)
    found = indices(sample["pixel_values"])
    assert found == [found[0] + 2 * k for k in range(4)]


def test_workers_and_epochs(videos, expected, tmp_path):
    folder = lay_out("videofolder", videos, tmp_path / "data")
    dataset = load(folder, tmp_path / "log", load_options={"seed": 5})
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(by_name(loader))
    for name, sample in expected.items():
        assert torch.equal(epochs[0][name]["pixel_values"], sample["pixel_values"])
        assert torch.equal(epochs[2][name]["pixel_values"], sample["pixel_values"])
    changed = [not torch.equal(epochs[1][name]["pixel_values"], epochs[0][name]["pixel_values"]) for name in GOOD]
    assert sum(changed) >= 4
    assert {video.name for video in dataset.skip_log.read()} == set(BAD)  # found by the workers


def test_streaming_workers_and_order(videos, expected, tmp_path):
    folder = lay_out("webdataset", videos, tmp_path / "data")
    orders = []
    for num_workers in (0, 2):
        dataset = load(folder, tmp_path / "log", streaming=True, load_options={"seed": 5})
        for epoch in (0, 1, 0):
            dataset.set_epoch(epoch)
            samples = list(DataLoader(dataset, batch_size=None, num_workers=num_workers))
            assert sorted(sample["name"] for sample in samples) == GOOD
            orders.append([sample["name"] for sample in samples])
            if epoch == 0:
                for sample in samples:
                    assert torch.equal(sample["pixel_values"], expected[sample["name"]]["pixel_values"])
    assert orders[0] == orders[2] != orders[1]
    unshuffled = load(folder, tmp_path / "log", streaming=True, load_options={"shuffle": False})
    names = [row.name for row in dataset.skip_log.read()] + GOOD
    assert [sample["name"] for sample in unshuffled] == [
        name for part in range(2) for name in sorted(names)[part::2] if name in GOOD
    ]


class TestMaxTrainSamples:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_the_first_ones(self, videos, tmp_path, streaming):
        folder = lay_out("csv", videos, tmp_path / "data")
        write_csv(folder / "OpenVid-1M.csv", [{"video": name, "caption": ""} for name in GOOD])
        dataset = load(folder, tmp_path / "log", streaming=streaming, max_train_samples=2)
        samples = list(dataset) if streaming else [dataset[index] for index in range(len(dataset))]
        assert sorted(sample["name"] for sample in samples) == GOOD[:2]


class TestNeverSilentlyAll:
    @pytest.fixture
    def unusable(self, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        for index in range(6):
            (folder / f"{index}.mp4").write_bytes(b"nothing")
        return folder

    def test_map_style(self, unusable, tmp_path):
        with pytest.raises(TooFewUsableVideos, match=r"6 videos tried, 0 can be used. 6 skipped: 6 broken \(0.mp4"):
            load(unusable, tmp_path / "log")[3]

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_streaming(self, unusable, tmp_path, num_workers):
        dataset = load(unusable, tmp_path / "log", streaming=True)
        with pytest.raises(TooFewUsableVideos, match="6 skipped: 6 broken"):
            list(DataLoader(dataset, batch_size=None, num_workers=num_workers))

    def test_streaming_workers_of_which_each_finds_none(self, videos, tmp_path):
        folder = lay_out("webdataset", videos, tmp_path / "data")
        dataset = load(folder, tmp_path / "log", streaming=True, num_frames=100)
        with pytest.raises(TooFewUsableVideos, match="7 too short"):
            list(DataLoader(dataset, batch_size=None, num_workers=2))

    def test_nearly_all_of_the_first_ones(self, videos, unusable, tmp_path):
        for index in range(6, 40):
            (unusable / f"{index:02}.mp4").write_bytes(b"nothing")
        shutil.copy(videos / GOOD[0], unusable / "00.mp4")
        dataset = load(unusable, tmp_path / "log", streaming=True, load_options={"shuffle": False})
        with pytest.raises(TooFewUsableVideos, match="20 videos tried, 1 can be used"):
            list(dataset)

    def test_no_file_of_a_table(self, tmp_path):
        write_csv(tmp_path / "a.csv", [{"video": "a.mp4", "caption": ""}])
        with pytest.raises(TooFewUsableVideos, match=r"1 file missing \(a.mp4\)"):
            load(tmp_path, tmp_path / "log")


class TestTables:
    def test_files_that_are_not_there_are_left_out_beforehand(self, videos, tmp_path):
        folder = lay_out("csv", videos, tmp_path / "data")
        missing = [{"video": f"part7-{index}.mp4", "caption": ""} for index in range(100)]
        write_csv(folder / "OpenVid-1M.csv", [*missing, {"video": GOOD[0], "caption": "NA"}])
        dataset = load(folder, tmp_path / "log")
        assert len(dataset) == 1 and dataset[0]["caption"] == "NA"
        assert len(dataset.skip_log.read()) == 100
        assert summarize(dataset.skip_log.read()).startswith("100 skipped: 100 file missing (part7-0.mp4; part7-1.mp4")

    def test_names_that_look_like_numbers(self, videos, tmp_path):
        shutil.copy(videos / GOOD[0], tmp_path / "007")
        write_csv(tmp_path / "a.csv", [{"video": "007", "caption": "1.50"}])
        sample = load(tmp_path, tmp_path / "log")[0]
        assert (sample["name"], sample["caption"]) == ("007", "1.50")

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("how", ["up", "absolute", "link", "linked folder"])
    def test_paths_that_lead_out(self, videos, tmp_path, how, streaming):
        folder = tmp_path / "data"
        folder.mkdir()
        path = {
            "up": f"../{videos.name}/{GOOD[0]}",
            "absolute": str(videos / GOOD[0]),
            "link": "link.mp4",
            "linked folder": GOOD[0],
        }[how]
        if how == "up":
            os.symlink(videos, tmp_path / videos.name)
        elif how == "link":
            os.symlink(videos / GOOD[0], folder / "link.mp4")
        elif how == "linked folder":
            os.symlink(videos, folder / "sub")
        write_csv(folder / "a.csv", [{"video": path, "caption": ""}])
        with pytest.raises(ValueError, match="leads out of the data folder"):
            dataset = load(folder, tmp_path / "log", streaming=streaming)
            list(dataset) if streaming else dataset[0]

    def test_a_path_in_parquet_does_not_lead_out_either(self, videos, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        table = {"video": [{"bytes": None, "path": str(videos / GOOD[0])}]}
        Dataset.from_dict(table, features=Features(video=Video(decode=False))).to_parquet(folder / "a.parquet")
        with pytest.raises(ValueError, match="leads out of the data folder"):
            load(folder, tmp_path / "log")[0]

    def test_several_tables(self, videos, tmp_path):
        folder = lay_out("csv", videos, tmp_path / "data")
        shutil.copy(folder / "OpenVid-1M.csv", folder / "OpenVidHD.csv")
        with pytest.raises(ValueError, match="several CSV files"):
            load(folder, tmp_path / "log")
        assert len(load(folder / "OpenVidHD.csv", tmp_path / "log")) == 10

    def test_bytes_without_a_name(self, videos, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        content = [(videos / name).read_bytes() for name in GOOD[:2]]
        Dataset.from_dict({"video": [*content, None]}).to_parquet(folder / "a.parquet")
        both = []
        for streaming in (False, True):
            dataset = load(folder, tmp_path / "log", streaming=streaming)
            samples = list(dataset) if streaming else [dataset[0], dataset[1]]
            both.append(by_name(samples))
            assert [len(sample["name"]) for sample in samples] == [16, 16]
        assert both[0].keys() == both[1].keys()
        assert samples[0]["caption"] == ""
        assert [(v.name, v.reason) for v in dataset.skip_log.read()] == [("(no video)", "no video")]

    def test_dataset_name_with_the_folder_of_its_videos(self, videos, tmp_path):
        table = tmp_path / "table"
        table.mkdir()
        Dataset.from_dict({"video": GOOD, "text": list("abcdef")}).to_parquet(table / "train.parquet")
        dataset = load(videos, tmp_path / "log", dataset_name=str(table))
        assert (dataset[1]["name"], dataset[1]["caption"]) == (GOOD[1], "b")


class TestNothingIsFetched:
    ADDRESSES = ["hf://datasets/a/private/x.mp4", "https://127.0.0.1:1/x.mp4", "file:///etc/passwd", "zip://a::hf://b"]

    @pytest.fixture(autouse=True)
    def no_connections(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("a connection was opened")

        monkeypatch.setattr("socket.socket.connect", refuse)
        monkeypatch.setattr("socket.getaddrinfo", refuse)

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("layout", ["csv", "parquet", "parquet of paths"])
    @pytest.mark.parametrize("address", ADDRESSES)
    def test_for_an_address_in_a_local_table(self, tmp_path, address, layout, streaming):
        folder = tmp_path / "data"
        folder.mkdir()
        if layout == "csv":
            write_csv(folder / "a.csv", [{"video": address, "caption": ""}])
        elif layout == "parquet":
            rows = {"video": [{"bytes": None, "path": address}]}
            # Not by `to_parquet` of `datasets`, which fetches what it writes.
            schema = Features(video=Video(decode=False)).arrow_schema
            pyarrow.parquet.write_table(pyarrow.Table.from_pydict(rows, schema), folder / "a.parquet")
        else:
            Dataset.from_dict({"video": [address]}).to_parquet(folder / "a.parquet")
        with pytest.raises(ValueError, match=r"an address\. Nothing is fetched for it"):
            dataset = load(folder, tmp_path / "log", streaming=streaming, load_options={"shuffle": False})
            list(dataset) if streaming else dataset[0]

    @pytest.mark.parametrize(
        ("path", "own"),
        [
            ("hf://datasets/me/videos/a.mp4", True),
            ("hf://datasets/me/videos@0f3a/sub/a.mp4", True),
            ("hf://datasets/me/videos-private/a.mp4", False),
            ("hf://datasets/me/videos/../private/a.mp4", False),
            ("hf://datasets/me/private/a.mp4", False),
            ("hf://me/videos/a.mp4", False),
            ("https://huggingface.co/datasets/me/videos/resolve/main/a.mp4", False),
        ],
    )
    def test_rows_from_the_hub_name_files_of_their_own_repository_only(self, path, own):
        reader = ClipReader(VideoDataArguments(dataset_name="me/videos"), "video", None, None, 0)
        if own:
            assert reader.exists(path)
        else:
            with pytest.raises(ValueError, match="an address"):
                reader.exists(path)
            with pytest.raises(ValueError, match="an address"):
                reader({"video": path})


@pytest.mark.parametrize("streaming", [False, True])
def test_text_in_bytes_is_no_path(videos, tmp_path, streaming):
    (tmp_path / "data").mkdir()
    rows = [{"bytes": str(videos / GOOD[0]), "path": "a.mp4"}] * 2
    Dataset.from_dict({"video": rows}).to_parquet(tmp_path / "data/a.parquet")
    with pytest.raises(ValueError, match="should hold videos: bytes, paths, or"):
        load(tmp_path / "data", tmp_path / "log", streaming=streaming)


ODD_VIDEOS = [{"bytes": "a.mp4", "path": None}, {"bytes": None, "path": 7}, ["a.mp4"], 7, {"bytes": [1]}]


@pytest.mark.parametrize("video", ODD_VIDEOS)
def test_a_row_that_holds_something_else_is_refused(tmp_path, video):
    reader = ClipReader(arguments(tmp_path), "video", None, tmp_path, 0)
    with pytest.raises(ValueError, match="should hold videos"):
        reader({"video": video})


def test_a_path_with_a_nul_byte_is_a_missing_file(videos, tmp_path):
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"video": ["a\0.mp4"]}).to_parquet(tmp_path / "data/a.parquet")
    with pytest.raises(TooFewUsableVideos, match="1 file missing"):
        load(tmp_path / "data", tmp_path / "log")
    with pytest.raises(UnusableVideo, match="file missing"):
        ClipReader(arguments(tmp_path), "video", None, tmp_path, 0)({"video": "a\0.mp4"})


@pytest.mark.parametrize("streaming", [False, True])
def test_max_train_samples_counts_the_files_that_are_there(videos, tmp_path, streaming):
    folder = lay_out("csv", videos, tmp_path / "data")
    names = ["no1.mp4", GOOD[0], "no2.mp4", GOOD[1], GOOD[2]]
    write_csv(folder / "OpenVid-1M.csv", [{"video": name, "caption": ""} for name in names])
    dataset = load(folder, tmp_path / "log", streaming=streaming, max_train_samples=2)
    samples = list(dataset) if streaming else [dataset[index] for index in range(len(dataset))]
    assert sorted(sample["name"] for sample in samples) == GOOD[:2]


class TestBadArguments:
    def test_folders(self, tmp_path):
        with pytest.raises(ValueError, match="does not exist"):
            load(tmp_path / "no", tmp_path / "log")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="holds no training data"):
            load(tmp_path / "empty", tmp_path / "log")
        (tmp_path / "a.txt").write_text("")
        with pytest.raises(ValueError, match="is a folder, or a CSV file"):
            load(tmp_path / "a.txt", tmp_path / "log")

    def test_columns(self, videos, tmp_path):
        folder = lay_out("csv", videos, tmp_path / "csv")
        with pytest.raises(ValueError, match=r"--video_column 'clip' is not in the dataset; it has \['aesthetic"):
            load(folder, tmp_path / "log", video_column="clip")
        folder = lay_out("parquet", videos, tmp_path / "parquet")
        with pytest.raises(ValueError, match="--caption_column 'words' is not"):
            load(folder, tmp_path / "log", caption_column="words")
        with pytest.raises(ValueError, match="should hold text"):
            load(folder, tmp_path / "log", caption_column="video")[2]
        (tmp_path / "no").mkdir()
        Dataset.from_dict({"a": ["b"]}).to_parquet(tmp_path / "no/a.parquet")
        with pytest.raises(ValueError, match="Name one with --video_column"):
            load(tmp_path / "no", tmp_path / "log")
