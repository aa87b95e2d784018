"""Whatever bytes a data file holds, a reader gives its content or one of our own errors, which names the file.

Inputs are random bytes, odd JSON values, and real files with some bytes changed, cut or repeated.
"""

import io
import json
import shutil
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import disable_progress_bars
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from vdmini_diffusers.data.arguments import TextToVideoDataArguments, VideoDataArguments
from vdmini_diffusers.data.latents import LatentShards, PrecomputedLatents
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import load_video_dataset
from vdmini_diffusers.data.video_decoding import UnusableVideo


pytestmark = pytest.mark.slow
disable_progress_bars()

many = settings(
    max_examples=400, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None, derandomize=True
)

odd_text = st.text(max_size=20) | st.sampled_from(
    ["a.mp4", "../a.mp4", "/etc/passwd", "hf://datasets/a/b/c", "a\0.mp4", "\ud800", "x" * 5000, "..", "."]
)
odd_numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 2**63, True])
odd_json = st.recursive(
    st.none() | st.booleans() | odd_numbers | odd_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """The content with bytes changed, cut, repeated or put in, or other bytes."""
    how = draw(st.sampled_from(["change", "cut", "repeat", "insert", "other"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "change":
        changed = bytearray(content)
        for index, value in draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)
        ):
            changed[index] = value
        return bytes(changed)
    if how == "cut":
        return content[:place]
    if how == "repeat":
        return content[:place] + content[place : place + 100] * draw(st.integers(2, 5)) + content[place:]
    if how == "insert":
        return content[:place] + draw(st.binary(max_size=50)) + content[place:]
    return draw(st.binary(max_size=200))


def dumps(value) -> bytes:
    return json.dumps(value).encode()


def read_folder(files: dict[str, bytes], streaming: bool, kind: type) -> None:
    """Opens and reads a folder as a training does, up to the decoding of videos, which here are none."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        try:
            args = kind(train_data_dir=str(folder), cache_dir=f"{scratch}/cache", streaming=streaming)
            dataset = load_video_dataset(args, SkipLog(f"{scratch}/log"), shuffle=False)
            rows = dataset.read_rows() if streaming else map(dataset.read_row, range(len(dataset)))
            for row in rows:
                with suppress(UnusableVideo):
                    dataset.reader(row)
        except ValueError as error:
            assert type(error).__module__ in ("builtins", "vdmini_diffusers.data.skipped_videos"), repr(error)
            assert str(folder) in str(error) or "can be used" in str(error), repr(error)


kinds = st.sampled_from([VideoDataArguments, TextToVideoDataArguments])
csv_content = b'video,caption\na.mp4,"one, two"\nb.mp4,"three ""four"""\n'
metadata_csv = b"file_name,caption\na.mp4,one\nb.mp4,two\n"
rows = [{"file_name": "a.mp4", "caption": "one"}, {"file_name": "b.mp4", "caption": "two"}]


def parquet_of(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="none")
    return buffer.getvalue()


parquet_content = parquet_of(pyarrow.table({"video": [b"x", None], "caption": ["one", "two"]}))
metadata_parquet = parquet_of(pyarrow.Table.from_pylist(rows))


def tar_of(members: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()[: 512 * (3 * len(members) + 2)]


tar_content = tar_of({"a.mp4": b"x", "a.txt": b"one", "b.webm": b"y", "b.json": b'{"caption": "two"}'})
pax_content = tar_of({"ä" * 60 + ".mp4": b"x", "b.mp4": b"y"}, tarfile.PAX_FORMAT)
columns = st.sampled_from(["video", "caption", "text", "bytes", "path", "file_name"])


@many
@given(
    damaged(csv_content)
    | st.lists(st.lists(odd_text, max_size=3), max_size=4).map(
        lambda table: "\n".join(",".join(row) for row in table).encode(errors="surrogatepass")
    ),
    st.booleans(),
    kinds,
)
def test_csv(content, streaming, kind):
    read_folder({"t.csv": content, "a.mp4": b""}, streaming, kind)


@many
@given(
    damaged(b"\n".join(map(dumps, rows)))
    | st.lists(odd_json, max_size=3).map(lambda lines: b"\n".join(map(dumps, lines)))
    | st.lists(st.dictionaries(columns, odd_json, max_size=3), max_size=3).map(
        lambda lines: b"\n".join(map(dumps, lines))
    ),
    st.booleans(),
    kinds,
)
def test_metadata_jsonl(content, streaming, kind):
    read_folder({"metadata.jsonl": content, "a.mp4": b"", "b.mp4": b"", "b.txt": b"two"}, streaming, kind)


@many
@given(damaged(metadata_csv), damaged(b"text"), st.booleans(), kinds)
def test_metadata_csv_and_text_files(content, text, streaming, kind):
    read_folder({"metadata.csv": content, "a.mp4": b"", "b.mp4": b"", "b.txt": text}, streaming, kind)


@many
@given(st.sampled_from(["metadata.parquet", "t.parquet"]), st.data(), st.booleans(), kinds)
def test_parquet(name, data, streaming, kind):
    content = data.draw(damaged(metadata_parquet if name == "metadata.parquet" else parquet_content))
    read_folder({name: content, "a.mp4": b"", "b.mp4": b""}, streaming, kind)


values = st.sampled_from(
    [
        "a.mp4",
        b"x",
        7,
        None,
        True,
        1.5,
        ["a.mp4"],
        {"bytes": "a.mp4", "path": "a.mp4"},
        {"bytes": b"x", "path": None},
        {"path": "../a.mp4"},
        {"url": "http://a"},
        "hf://datasets/a/b/c",
    ]
)


@many
@given(st.dictionaries(columns, values, min_size=1, max_size=3), st.booleans(), kinds)
def test_parquet_of_odd_types(row, streaming, kind):
    read_folder({"t.parquet": parquet_of(pyarrow.Table.from_pylist([row, row])), "a.mp4": b""}, streaming, kind)


@many
@given(
    damaged(tar_content)
    | damaged(pax_content)
    | st.dictionaries(
        st.sampled_from(["a.mp4", "a.json", "a.txt", "../b.mp4", "/c.mkv", ".mp4", "d", "a.b.mp4"]),
        st.binary(max_size=9) | odd_json.map(dumps),
        max_size=4,
    ).map(tar_of),
    st.booleans(),
    kinds,
)
def test_tars(content, streaming, kind):
    read_folder({"t.tar": content}, streaming, kind)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "whole"
    writer = LatentShards(folder, {"seed": 1})
    writer.write(0, [{"latents": torch.ones(2), "fps": torch.tensor(8.0)}] * 2, [{"name": "a", "caption": "b"}] * 2)
    writer.finish([])
    return folder


def read_shards(shards: Path, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(shards, Path(scratch) / "a"))
        (folder / name).write_bytes(content)
        for read in (read_all, lambda folder: LatentShards(folder, {"seed": 1}).is_finished(0), finish):
            try:
                read(folder)
            except ValueError as error:
                assert type(error) is ValueError and str(folder) in str(error), repr(error)


def read_all(folder: Path) -> None:
    data = PrecomputedLatents(folder, captions=True)
    for index in range(min(len(data), 5)):
        data[index]


def finish(folder: Path) -> None:
    LatentShards(folder, {"seed": 1}).finish([])


def changed(draw, content):
    """A JSON object with one value, at any depth, replaced."""
    place = content
    while True:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
            break
        place = place[key]
    place[key] = draw(odd_json)
    return dumps(content)


@many
@given(st.sampled_from(["manifest.json", "latents-00000.json"]), st.data())
def test_manifests_and_names_of_shards(shards, name, data):
    content = (shards / name).read_bytes()
    if data.draw(st.booleans()):
        read_shards(shards, name, changed(data.draw, json.loads(content)))
    else:
        read_shards(shards, name, data.draw(damaged(content) | odd_json.map(dumps)))


@many
@given(st.data())
def test_shards_of_the_right_size(shards, data):
    content = (shards / "latents-00000.safetensors").read_bytes()
    places = data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=6)
    )
    altered = bytearray(content)
    for index, value in places:
        altered[index] = value
    read_shards(shards, "latents-00000.safetensors", bytes(altered))


@many
@given(
    damaged(b'{"name": "a", "reason": "b", "detail": "c"}\n' * 2) | odd_json.map(lambda value: dumps(value) + b"\n")
)
def test_lists_of_skipped_videos(content):
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "a.jsonl").write_bytes(content)
        try:
            SkipLog(scratch).read()
        except ValueError as error:
            assert type(error) is ValueError and "a.jsonl" in str(error)
