"""How the code of our classes travels beside their weights."""

# Defined there because a pipeline that was loaded without this package publishes its classes as well.
from vdmini_diffusers.pipelines.pipeline_vdmini_i2v import publish_class


__all__ = ["publish_class"]
