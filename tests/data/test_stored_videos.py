import numpy as np
import pytest
from PIL import Image
from written_videos import STEP, write_video

from vdmini_diffusers.data.stored_videos import find_videos
from vdmini_diffusers.data.video_decoding import UnusableVideo


def write_frames(folder, levels, size=(24, 32), ending="png"):
    folder.mkdir(parents=True)
    for index, level in enumerate(levels):
        picture = np.full((*size, 3), level, np.uint8)
        Image.fromarray(picture).save(folder / f"frame_{index}.{ending}")


def shown(clip):
    return (clip.frames.mean(axis=(1, 2, 3)) / STEP).round().astype(int).tolist()


def test_ucf101_layout_and_folders_of_frames_are_found_by_name(tmp_path):
    for name in ("Archery/v_Archery_g01_c01.avi", "Archery/v_Archery_g01_c02.avi", "Bowling/v_Bowling_g01_c01.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, 5, codec="mpeg4")
    write_frames(tmp_path / "frames" / "a", [0, 4])
    (tmp_path / "Archery" / "notes.txt").write_text("x")
    videos, others = find_videos(tmp_path)
    names = ["Archery/v_Archery_g01_c01", "Archery/v_Archery_g01_c02", "Bowling/v_Bowling_g01_c01", "frames/a"]
    assert [video.name for video in videos] == names
    assert [video.num_frames() for video in videos] == [5, 5, 5, 2]
    assert others == ["Archery/notes.txt"]


@pytest.mark.parametrize("fps", [7, 25])
def test_neighbouring_frames_whatever_the_rate(tmp_path, fps):
    write_video(tmp_path / "v.mp4", 20, fps)
    (video,), _ = find_videos(tmp_path)
    for first in (0, 3, 12):
        clip = video.read(8, 48, 64, first)
        assert shown(clip) == list(range(first, first + 8)) and clip.frames.shape == (8, 48, 64, 3)
    with pytest.raises(UnusableVideo, match="20 frames, and a clip takes 8 from frame 13"):
        video.read(8, 48, 64, 13)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    write_frames(tmp_path / "v", [STEP * k for k in range(12)])
    (video,), _ = find_videos(tmp_path)
    assert shown(video.read(12, 24, 32)) == list(range(12))


def test_pixels_of_jpeg_files_are_known_as_such_at_their_own_size_only(tmp_path):
    write_frames(tmp_path / "jpeg", [8, 16], ending="jpg")
    write_frames(tmp_path / "png", [8, 16])
    jpeg, png = find_videos(tmp_path)[0]
    assert jpeg.read(2, 24, 32).is_jpeg
    assert not jpeg.read(2, 12, 16).is_jpeg and not png.read(2, 24, 32).is_jpeg


def test_of_another_aspect_the_centre_is_shown(tmp_path):
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 200
    (tmp_path / "v").mkdir()
    Image.fromarray(picture).save(tmp_path / "v" / "0.png")
    ((video,), _) = find_videos(tmp_path)
    assert (video.read(1, 10, 10).frames == 200).all()


class TestWrongFolders:
    def test_frames_without_a_folder(self, tmp_path):
        write_frames(tmp_path / "v", [0, 4])
        with pytest.raises(ValueError, match=r"holds pictures itself, such as frame_0\.png"):
            find_videos(tmp_path / "v")

    def test_no_videos(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"no videos.*It holds 1 \.zip"):
            find_videos(tmp_path)
        with pytest.raises(ValueError, match="is no folder"):
            find_videos(tmp_path / "missing")

    def test_two_of_one_name(self, tmp_path):
        write_video(tmp_path / "v.mp4", 2)
        write_frames(tmp_path / "v", [0])
        with pytest.raises(ValueError, match="several videos of the name v"):
            find_videos(tmp_path)

    def test_damaged_videos_and_frames(self, tmp_path):
        (tmp_path / "a.avi").write_bytes(b"RIFF no video")
        write_frames(tmp_path / "b", [0, 4])
        (tmp_path / "b" / "frame_1.png").write_bytes(b"no picture")
        write_frames(tmp_path / "c", [0])
        Image.new("RGB", (8, 8)).save(tmp_path / "c" / "frame_1.png")
        damaged, broken_frame, changing = find_videos(tmp_path)[0]
        with pytest.raises(UnusableVideo, match="broken"):
            damaged.num_frames()
        with pytest.raises(UnusableVideo, match=r"broken: .*frame_1\.png"):
            broken_frame.read(2, 24, 32)
        with pytest.raises(UnusableVideo, match="changing size: frames of 8 x 8 and 32 x 24"):
            changing.read(2, 24, 32)
