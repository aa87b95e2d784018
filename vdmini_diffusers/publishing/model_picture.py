"""The picture of what was removed from a model, for its card."""

from vdmini_diffusers.publishing.model_info import ModelInfo
from vdmini_diffusers.publishing.network_picture import TitledNetwork, network_png, short_count


def draw_model(info: ModelInfo, title: str | None = None) -> bytes | None:
    """A PNG file: the networks that were pruned, or, of a model from which nothing was removed, all that can be drawn.

    Args:
        title: what the model is called; by default the last part of its name.

    Returns:
        None if the model has no network that can be drawn.
    """
    title = title or info.name.rstrip("/").rpartition("/")[2]
    drawn = [part for part in info.pruned if part.sketch] or [part for part in info.components if part.sketch]
    networks = []
    for part in drawn:
        sizes = f"{part.num_parameters:,} parameters" if part.num_parameters else ""
        if part.num_parameters and part.num_teacher_parameters:
            percent = 100 * part.num_parameters / part.num_teacher_parameters
            before, after = short_count(part.num_teacher_parameters), short_count(part.num_parameters)
            sizes = f"{before} to {after} parameters ({percent:.1f} %)"
        assert part.sketch is not None
        plan = f"plan {part.plan.name}" if part.plan else "nothing removed"
        network = f"{part.sketch.network} {part.name}" if len(drawn) > 1 else part.sketch.network
        networks.append(TitledNetwork(f"{title}: {network}", f"{sizes}, {plan}".removeprefix(", "), part.sketch))
    return network_png(networks) if networks else None
