"""The only metadata of the package; tools read pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup


ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vdmini_diffusers" / "version.py").read_text())[1]

# A lower bound with a reason beside it is what the code needs; one without is a release of the last years with wheels
# for Python 3.11, and nothing older is tested. `make test-oldest` runs the tests with all of them but torch's. An
# upper bound stands only where something is known to break.

# Imported only by the functions that need them: `import vdmini_diffusers` works without any extra.
# Never here: torchvision and what pulls it in (lpips), except in an extra of its own. Where torchvision does not match
# torch, it breaks the import of diffusers and transformers as well.
EXTRAS = {
    "app": ["gradio>=6.31"],  # the page of `vdmini app`; it wants pillow<13
    "video": ["av>=18.1"],  # older ones ignore the tags of a video's colours when they convert it
    "train": [
        "datasets>=4.0",  # before it, videos were decoded by decord
        "peft>=0.18.2",  # as transformers 5.11
    ],
    "teacher": ["scikit-image>=0.24", "scikit-learn>=1.5"],
    "evaluate": ["torchmetrics>=1.4"],  # without its extras, which bring torchvision
    "lpips": ["lpips>=0.1.4"],
    "prune": ["torch-pruning>=1.6"],
    "plot": ["matplotlib>=3.8"],
    # The reference of the Python interface, and what runs the notebooks.
    "docs": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10", "pdoc>=15"],
    "test": ["hypothesis>=6.100", "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6"],
    "quality": ["pyright>=1.1.400", "ruff>=0.17", "uv>=0.8"],
}
EXTRAS["app"] += EXTRAS["video"]
EXTRAS["train"] += EXTRAS["video"]
EXTRAS["test"] += EXTRAS["train"] + EXTRAS["teacher"] + EXTRAS["prune"] + EXTRAS["evaluate"]
EXTRAS["dev"] = EXTRAS["test"] + EXTRAS["quality"]

setup(
    name="vdmini_diffusers",
    version=VERSION,
    description="VDMini: pruned and distilled video diffusion models for Hugging Face diffusers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    install_requires=[
        "accelerate>=1.13",  # older ones want MASTER_ADDR of processes that are not joined
        "diffusers>=0.42",  # its way of loading custom components: see "Saving and publishing" in pipelines/README.md
        "filelock>=3.16",
        "ftfy>=6.1",
        "huggingface_hub>=1.32",  # as diffusers 0.42
        "numpy>=2.0",  # the wheels of torch, av and scikit-image are built against it
        "pillow>=11.0",
        "psutil>=5.9",  # the free memory of any system; accelerate brings it
        "pyyaml>=6.0.2",
        "safetensors>=0.8",  # as diffusers 0.42
        "torch>=2.6",  # the first whose `torch.load` reads tensors only unless told otherwise
        "tqdm>=4.67",
        "transformers>=5.11,<5.24",  # older ones rename CLIP's tensors; 5.24 wants peft 0.22, not yet released
        "typer>=0.19",  # parses `vdmini`, whose errors and help older ones print otherwise; huggingface_hub brings it
    ],
    extras_require=EXTRAS,
    # Pipelines and model cards live in top-level folders. In a checkout, the links to them in vdmini_diffusers/ make
    # import path and file path agree for every tool; this mapping makes installs work where git made no link
    # (Windows).
    packages=[
        "vdmini_diffusers",
        "vdmini_diffusers.analysis",
        "vdmini_diffusers.analysis.f3",
        "vdmini_diffusers.cli",
        "vdmini_diffusers.data",
        "vdmini_diffusers.demo",
        "vdmini_diffusers.distillation",
        "vdmini_diffusers.distillation.tasks",
        "vdmini_diffusers.evaluation",
        "vdmini_diffusers.families",
        "vdmini_diffusers.generation",
        "vdmini_diffusers.inference",
        "vdmini_diffusers.model_cards",
        "vdmini_diffusers.models",
        "vdmini_diffusers.pipelines",
        "vdmini_diffusers.pruning",
        "vdmini_diffusers.pruning.plans",
        "vdmini_diffusers.publishing",
        "vdmini_diffusers.serialization",
        "vdmini_diffusers.t2v_turbo",
        "vdmini_diffusers.trainers",
    ],
    package_dir={
        "": ".",
        "vdmini_diffusers.model_cards": "model_cards",
        "vdmini_diffusers.pipelines": "pipelines",
    },
    entry_points={"console_scripts": ["vdmini = vdmini_diffusers.cli.main:vdmini"]},
    package_data={
        "vdmini_diffusers": ["py.typed"],
        "vdmini_diffusers.demo": ["*.png", "examples/*", "i2v_teacher/*", "i2v_teacher/*/*", "t2v_*/*", "t2v_*/*/*"],
        "vdmini_diffusers.evaluation": ["paper_networks.json"],
        "vdmini_diffusers.model_cards": ["*.md"],
    },
)
