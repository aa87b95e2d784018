"""Build the reference of the Python interface from docstrings, as HTML: `make docs`.

    python docs/build_reference.py outputs/api

It ends with an error at the first warning of pdoc, such as a module that cannot be imported.
"""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import vdmini_diffusers


def module_specs() -> list[str]:
    """All modules, each once: pdoc takes those in a package along, but not where its `__all__` leaves them out."""
    specs = [vdmini_diffusers.__name__]
    whole: set[str] = set()  # packages whose modules pdoc takes along
    for found in pkgutil.walk_packages(vdmini_diffusers.__path__, f"{vdmini_diffusers.__name__}."):
        if found.name.endswith("__main__"):
            continue
        if found.name.rpartition(".")[0] not in whole:
            specs.append(found.name)
        if found.ispkg and not hasattr(importlib.import_module(found.name), "__all__"):
            whole.add(found.name)
    return specs


def main(folder: Path) -> None:
    warnings.filterwarnings("error", module=r"pdoc\.")
    # A property of torch.Tensor itself, which `distillation.tasks.base.Denoised` inherits.
    warnings.filterwarnings("ignore", r"Cannot determine where .*\._is_param is taken from")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*module_specs(), output_directory=folder)
    print(f"{sum(1 for _ in folder.rglob('*.html'))} pages are in {folder}: open {folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
