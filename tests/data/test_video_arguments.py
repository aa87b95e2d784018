import pytest

from vdmini_diffusers.data.arguments import VideoDataArguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of the two"),
        ({"train_data_dir": "a", "precomputed_data_dir": "b"}, "one of the two"),
        ({"train_data_dir": "a", "fps": 0}, "--fps must be at least 1; got 0"),
        ({"train_data_dir": "a", "max_train_samples": 0}, "--max_train_samples must be at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VideoDataArguments(**options)
