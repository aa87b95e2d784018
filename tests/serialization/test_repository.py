"""Repositories: the class that is published in one beside the weights, and access to it."""

import filecmp

import pytest
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.models import unet_spatio_temporal_vdmini
from vdmini_diffusers.serialization.repository import check_push, model_index_entry


def test_a_class_is_published_as_its_source_file_and_the_entry_that_names_it(tmp_path):
    entry = model_index_entry(VDMiniUNetSpatioTemporalConditionModel, tmp_path / "new" / "unet")
    assert entry == ("unet_spatio_temporal_vdmini", "VDMiniUNetSpatioTemporalConditionModel")
    published = tmp_path / "new" / "unet" / "unet_spatio_temporal_vdmini.py"
    assert filecmp.cmp(published, unet_spatio_temporal_vdmini.__file__, shallow=False)
    assert model_index_entry(VDMiniI2VPipeline, tmp_path) == ("pipeline_vdmini_i2v", "VDMiniI2VPipeline")


def test_an_older_copy_is_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "unet_spatio_temporal_vdmini.py").write_text("older")
    model_index_entry(VDMiniUNetSpatioTemporalConditionModel, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["unet_spatio_temporal_vdmini.py"]
    assert (tmp_path / "unet_spatio_temporal_vdmini.py").read_text().startswith('"""')


def test_a_write_that_fails_half_way_leaves_the_older_copy_whole(tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits are of POSIX")
    older = tmp_path / "unet_spatio_temporal_vdmini.py"
    older.write_text("older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError):
            model_index_entry(VDMiniUNetSpatioTemporalConditionModel, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert older.read_text() == "older"
    assert list(tmp_path.iterdir()) == [older]


def test_a_class_without_a_python_file_is_refused(tmp_path):
    with pytest.raises(TypeError):
        model_index_entry(int, tmp_path)


def test_a_stock_class_is_named_by_its_library_and_brings_no_file(tmp_path):
    assert model_index_entry(UNetSpatioTemporalConditionModel, tmp_path) == (
        "diffusers",
        "UNetSpatioTemporalConditionModel",
    )
    assert list(tmp_path.iterdir()) == []


def test_push_without_access_to_the_hub_is_refused():  # tests are offline
    with pytest.raises(
        OSError, match=r"`--push_to_hub`: org/vdmini cannot be written to .* leave out `--push_to_hub`"
    ):
        check_push("org/vdmini")


def test_push_to_what_is_no_name_of_a_repository_is_refused():
    with pytest.raises(ValueError, match=r"`--push_to_hub`: 'a/b/c' is no name of a repository"):
        check_push("a/b/c")
