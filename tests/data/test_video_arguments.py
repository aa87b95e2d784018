import pytest

from vdmini_diffusers.data.arguments import VideoDataArguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of the two"),
        ({"train_data_dir": "a", "precomputed_data_dir": "b"}, "one of the two"),
        ({"train_data_dir": "a", "fps": 0}, "--fps must be at least 1; got 0"),
        ({"train_data_dir": "a", "max_train_samples": 0}, "--max_train_samples must be at least 1"),
        ({"train_data_dir": "a", "fps": float("nan")}, "--fps must be a whole number; got nan"),
        ({"train_data_dir": "a", "num_frames": float("inf")}, "--num_frames must be a whole number; got inf"),
        ({"train_data_dir": "a", "num_frames": True}, "--num_frames must be a whole number; got True"),
        ({"train_data_dir": "a", "height": "448"}, "--height must be a whole number; got '448'"),
        ({"train_data_dir": "a", "width": None}, "--width must be a whole number; got None"),
        ({"train_data_dir": "a", "num_frames": 10**9}, "--num_frames must be at most 4096"),
        ({"train_data_dir": "a", "dataloader_num_workers": 2000}, "--dataloader_num_workers must be at most 1024"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VideoDataArguments(**options)
