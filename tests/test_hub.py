"""Publishing a class: what conversion scripts write beside the weights."""

import filecmp

import pytest

from vdmini_diffusers import VDMiniI2VPipeline, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.hub import publish_class
from vdmini_diffusers.models import unet_spatio_temporal_vdmini


def test_a_class_is_published_as_its_source_file_and_the_entry_that_names_it(tmp_path):
    entry = publish_class(VDMiniUNetSpatioTemporalConditionModel, tmp_path / "new" / "unet")
    assert entry == ("unet_spatio_temporal_vdmini", "VDMiniUNetSpatioTemporalConditionModel")
    published = tmp_path / "new" / "unet" / "unet_spatio_temporal_vdmini.py"
    assert filecmp.cmp(published, unet_spatio_temporal_vdmini.__file__, shallow=False)
    assert publish_class(VDMiniI2VPipeline, tmp_path) == ("pipeline_vdmini_i2v", "VDMiniI2VPipeline")


def test_an_older_copy_is_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "unet_spatio_temporal_vdmini.py").write_text("older")
    publish_class(VDMiniUNetSpatioTemporalConditionModel, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["unet_spatio_temporal_vdmini.py"]
    assert "older" not in (tmp_path / "unet_spatio_temporal_vdmini.py").read_text()[:10]


def test_a_class_without_a_python_file_is_refused(tmp_path):
    with pytest.raises(TypeError):
        publish_class(int, tmp_path)
