"""`vdmini app`: a page in the browser, for a student and its teacher side by side."""

from typing import Annotated

from typer import Option, echo

from vdmini_diffusers.cli.generate import MACHINE, MODEL, Precision, finite


SERVER = "Server"


def app(
    model: Annotated[
        str | None,
        Option(help="Folder or Hub id of a pipeline. Default: the demo models.", rich_help_panel=MODEL),
    ] = None,
    teacher: Annotated[
        str | None, Option(help="Folder or Hub id of the pipeline to show beside it.", rich_help_panel=MODEL)
    ] = None,
    variant: Annotated[
        str | None, Option(help="Of the weight files of both, e.g. fp16.", rich_help_panel=MODEL)
    ] = None,
    device: Annotated[
        str | None, Option(help="cuda, mps, xpu, cpu. Default: the fastest here.", rich_help_panel=MACHINE)
    ] = None,
    dtype: Annotated[
        Precision | None, Option(help="Precision. Default: what suits the device.", rich_help_panel=MACHINE)
    ] = None,
    memory: Annotated[
        float | None,
        Option(
            min=0, callback=finite, help="GiB that a clip may use. Default: what is free.", rich_help_panel=MACHINE
        ),
    ] = None,
    host: Annotated[
        str | None,
        Option(
            help="Address to listen at. Default: 127.0.0.1, this machine alone. 0.0.0.0 is for all that reach it.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    port: Annotated[
        int | None,
        Option(min=1, max=65535, help="Default: the first that is free from 7860 on.", rich_help_panel=SERVER),
    ] = None,
) -> None:
    """Open a page in the browser: a student beside its teacher.

    Example: vdmini app --model org/vdmini-i2v --teacher stabilityai/stable-video-diffusion-img2vid

    Stop, and leaving the page, end the work after the step that runs. A Space runs the same page.
    """
    from vdmini_diffusers.generation.app import build_app, build_page, import_gradio, launch
    from vdmini_diffusers.generation.production import ModelToOpen

    import_gradio()
    if model is None and teacher is not None:
        raise ValueError("--teacher is shown beside a student: give that one with --model.")

    def to_open(name: str) -> ModelToOpen:
        return ModelToOpen(name, variant=variant, device=device, dtype=dtype, memory=memory)

    if model is not None:
        page = build_app(to_open(model), None if teacher is None else to_open(teacher))
    else:
        from vdmini_diffusers.demo.students import demo_model, demo_teacher
        from vdmini_diffusers.generation.opened_model import OpenedModel

        tabs = {}
        for given, name in (("image", "Picture"), ("text", "Prompt")):
            demo = demo_model(given)
            folders = {"Student": demo.folder, "Teacher": demo_teacher(given)}
            if demo.folder == demo_teacher(given):
                folders = {"Demo teacher": demo.folder}
                echo(demo.note, err=True)
            tabs[name] = {
                label: OpenedModel.open(to_open(str(folder)), demo.defaults) for label, folder in folders.items()
            }
        page = build_page(tabs)
    launch(page, host, port)
