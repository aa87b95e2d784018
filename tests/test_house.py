"""The rules of the house, kept by reading the source: which way imports go, and what diffusers can load."""

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import diffusers.pipelines
import pytest
from checkout import ROOT
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


PACKAGE = ROOT / "vdmini_diffusers"

# A part imports parts of lower floors only. Scripts and tests, which are not named here, stand above all of them.
FLOORS = {
    "version": 0,
    "models": 1,
    "pipelines": 1,
    "inference": 2,
    "serialization": 2,
    "data": 3,
    "families": 4,
    "pruning": 5,
    "distillation": 5,
    "evaluation": 5,
    "t2v_turbo": 5,
    "analysis": 6,
    "publishing": 6,
    "trainers": 6,
    "generation": 7,
    "demo": 7,
    "cli": 8,
    "quickstart": 9,
    "__main__": 9,
}

# What a file may import that is also published beside the weights, where our package is not installed.
HUB_IMPORTS = {"PIL", "diffusers", "huggingface_hub", "numpy", "torch", "transformers"} | set(sys.stdlib_module_names)
# And what it must do without: imported under `if is_ftfy_available():` only, as diffusers' own pipelines do.
GUARDED_HUB_IMPORTS = {"ftfy"}

# A relative import as diffusers finds it (`get_relative_imports`): in any line, of a docstring as well.
RELATIVE_IMPORT = re.compile(r"^\s*(?:import\s+\.(\S+)\s*$|from\s+\.(\S+)\s+import)", re.MULTILINE)


def source_files() -> list[Path]:
    """The package's files; those of `vdmini_diffusers/pipelines`, a link, under that name, as they are imported."""
    linked = [PACKAGE / "pipelines" / path.name for path in sorted((ROOT / "pipelines").glob("*.py"))]
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] != "pipelines"] + linked


def hub_files() -> list[Path]:
    return [
        path
        for folder in (ROOT / "pipelines", PACKAGE / "models")
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    ]


def scripts() -> list[Path]:
    folders = ("conversion", "training", "benchmarks", "tests")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def guarded_imports(tree: ast.Module) -> list[ast.stmt]:
    """`import x` at the top of a file, under `if is_x_available():`."""
    return [
        inner
        for node in tree.body
        if isinstance(node, ast.If)
        for inner in node.body
        if ast.unparse(inner) in {f"import {name}" for name in GUARDED_HUB_IMPORTS}
        and ast.unparse(node.test) == f"is_{ast.unparse(inner).split()[1]}_available()"
    ]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(module: str) -> str:
    """`pruning` for `vdmini_diffusers.pruning.plans.base`; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all that a file imports, also inside functions and under `TYPE_CHECKING`."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            # The package's part of the name is that of the folder, one level up for each further dot.
            parents = path.relative_to(ROOT).parts[: -node.level]
            modules.add(".".join([*parents, node.module or ""]).rstrip("."))
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
            # `from vdmini_diffusers import data` imports a module as well
            modules |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "vdmini_diffusers"}
    return modules


def parts_imported_by(path: Path) -> set[str]:
    ours = {module for module in imported_modules(path) if module.split(".")[0] == "vdmini_diffusers"}
    return {part for part in map(part_of, ours) if part in FLOORS}


@pytest.mark.parametrize("path", source_files(), ids=relative)
def test_imports_go_down(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the package's own: it re-exports any part
    assert part in FLOORS, f"{relative(path)} stands on no floor: add it to FLOORS, and to the documentation"
    wrong = {other for other in parts_imported_by(path) if other != part and FLOORS[other] >= FLOORS[part]}
    assert not wrong, f"{part}, on floor {FLOORS[part]}, imports {wrong}"


@pytest.mark.parametrize("path", source_files(), ids=relative)
def test_the_package_imports_no_script(path):
    tops = {module.split(".")[0] for module in imported_modules(path)}
    assert not tops & {"conversion", "training", "benchmarks", "tests", "tiny", "pipelines", "pytest"}


@pytest.mark.parametrize("path", scripts(), ids=relative)
def test_scripts_and_tests_import_no_other_script_and_the_pipelines_by_their_package(path):
    tops = {module.split(".")[0] for module in imported_modules(path)}
    assert not tops & {"conversion", "training", "benchmarks", "pipelines"}


def test_the_import_reader_sees_every_form_of_import(tmp_path, monkeypatch):
    # A control for the tests above.
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "vdmini_diffusers" / "pruning" / "plan.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import os, vdmini_diffusers.data.x\n"
        "from vdmini_diffusers import data\n"
        "from ..models import unet\n"
        "from .presets import PLANS\n"
        "def f():\n    from vdmini_diffusers.pipelines import a\n"
    )
    assert imported_modules(path) == {
        "os",
        "vdmini_diffusers",
        "vdmini_diffusers.data.x",
        "vdmini_diffusers.data",
        "vdmini_diffusers.models",
        "vdmini_diffusers.pruning.presets",
        "vdmini_diffusers.pipelines",
    }
    assert parts_imported_by(path) == {"data", "models", "pruning", "pipelines"}


def test_there_are_hub_files():
    models = {"autoencoder_kl_vdmini.py", "unet_3d_vdmini.py", "unet_spatio_temporal_vdmini.py"}
    assert models | {"pipeline_vdmini_i2v.py", "pipeline_vdmini_t2v.py"} <= {path.name for path in hub_files()}


@pytest.mark.parametrize("path", hub_files(), ids=relative)
class TestHubFiles:
    """Files that also run beside the weights, downloaded by diffusers and without our package."""

    def test_they_import_what_diffusers_users_have(self, path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        siblings = set()
        guarded = guarded_imports(tree)
        for node in ast.walk(tree):
            if node in guarded:
                continue
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= HUB_IMPORTS
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
                assert (path.parent / f"{node.module}.py").is_file(), ast.unparse(node)
                siblings.add(node.module)
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in HUB_IMPORTS, ast.unparse(node)
        if path.parent.name == "models":
            assert not siblings, "only the one file of a model is downloaded"

    def test_no_line_of_text_looks_like_another_relative_import(self, path):
        text = path.read_text(encoding="utf-8")
        real = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level}
        found = {first or second for first, second in RELATIVE_IMPORT.findall(text)}
        assert found == real

    def test_the_stem_says_what_and_whose_it_is(self, path):
        assert re.fullmatch(r"(pipeline|unet|autoencoder_kl|transformer|scheduling)_(\w+_)?vdmini(_\w+)?", path.stem)

    def test_the_public_classes_carry_our_name(self, path):
        classes = [n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]
        diffusers_kinds = [
            n for n in classes if n.endswith(("Pipeline", "Model", "Scheduler")) or "AutoencoderKL" in n
        ]
        assert diffusers_kinds and all(name.startswith("VDMini") for name in diffusers_kinds)


def test_the_scan_for_relative_imports_is_the_one_of_diffusers(tmp_path):
    from diffusers.utils.dynamic_modules_utils import get_relative_imports

    text = 'from .a import x\n"""\n  from .b import y\n"""\n# from .c import z\nfrom torch import nn\nimport .d\n'
    (tmp_path / "module.py").write_text(text)
    ours = {first or second for first, second in RELATIVE_IMPORT.findall(text)}
    assert ours == set(get_relative_imports(tmp_path / "module.py")) == {"a", "b", "d"}


def test_stems_are_unique_as_diffusers_keeps_loaded_files_by_stem():
    stems = [path.stem for path in hub_files()]
    assert len(stems) == len(set(stems))


@pytest.mark.parametrize("path", [p for p in hub_files() if p.parent.name == "models"], ids=relative)
def test_a_model_s_module_holds_model_mixin(path):
    module = importlib.import_module(f"vdmini_diffusers.models.{path.stem}")
    assert module.ModelMixin is ModelMixin


@pytest.mark.parametrize("path", [p for p in hub_files() if p.stem.startswith("scheduling")], ids=relative)
def test_a_scheduler_s_module_holds_scheduler_mixin(path):
    module = importlib.import_module(f"vdmini_diffusers.pipelines.{path.stem}")
    assert module.SchedulerMixin is SchedulerMixin


@pytest.mark.parametrize("path", [p for p in hub_files() if p.stem.startswith("pipeline")], ids=relative)
def test_a_pipeline_s_module_holds_one_pipeline_class(path):
    module = importlib.import_module(f"vdmini_diffusers.pipelines.{path.stem}")
    # Counted as `diffusers.utils.dynamic_modules_utils.find_pipeline_class` does.
    pipelines = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, DiffusionPipeline) and cls.__module__.split(".")[0] != "diffusers"
    ]
    assert len(pipelines) == 1


def test_a_guarded_import_is_one_under_its_own_condition():
    # A control for the test above of what published files import.
    text = "if is_ftfy_available():\n    import ftfy\nelse:\n    import ftfy\nif is_x():\n    import ftfy\nimport ftfy"
    tree = ast.parse(text)
    assert guarded_imports(tree) == [tree.body[0].body[0]]


def definitions(path: Path) -> dict[str, str]:
    """The text of each function, method, class and constant of a file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    named = {node.name: node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    constants = {ast.unparse(node.targets[0]): node for node in tree.body if isinstance(node, ast.Assign)}
    return {name: ast.get_source_segment(text, node) for name, node in {**named, **constants}.items()}


def test_what_the_pipelines_repeat_is_the_same_text():
    """Each is published as one file, so they cannot share code; how folders are written and opened must not differ."""
    i2v, t2v = (definitions(ROOT / "pipelines" / f"pipeline_vdmini_{kind}.py") for kind in ("i2v", "t2v"))
    same = {name for name in set(i2v) & set(t2v) if i2v[name] == t2v[name]}
    assert same >= {
        "OUTPUT_TYPES",
        "UNET_COMPANIONS",
        "publish_class",
        "to_json_file",
        "_copy_companions",
        "_dict_from_json_file",
        "load_config",
        "_components",
        "_check_numbers",
        "_check_finite",
        "_check_generator",
        "_check_callback",
        "_callback_result",
        "_lora_must_fit",
        "_optimize",
        "_read_index",
        "_replace_file",
        "_explaining_errors",
        "from_pipe",
        "one_call_at_a_time",
        "postprocess",
    }
    own = {"__call__", "default_size", "decode_latents", "_check_shapes", "_check_scheduler", "load_lora_weights"}
    own |= {"__init__", "from_pretrained"}  # the latter, of text to video, opens folders of transformers as well
    assert set(i2v) & set(t2v) - same <= own, "a repeat has drifted"


def test_no_folder_is_named_like_a_pipeline_module_of_diffusers():
    theirs = {module.name for module in pkgutil.iter_modules(diffusers.pipelines.__path__)}
    ours = {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert "stable_video_diffusion" in theirs and not ours & theirs


def test_no_file_is_a_drawer_for_everything():
    drawers = {"utils.py", "util.py", "misc.py", "common.py", "helpers.py", "tools.py"}
    files = [*source_files(), *scripts()]
    assert [relative(path) for path in files if path.name in drawers] == []


def test_nothing_needs_a_path_of_one_machine():
    suspicious = re.compile(r"""["'](/home/|/root/|/mnt/|/Users/|[A-Z]:\\)""")
    files = [path for path in [*source_files(), *scripts()] if path != Path(__file__)]
    assert [relative(path) for path in files if suspicious.search(path.read_text(encoding="utf-8"))] == []


def test_importing_the_package_imports_no_optional_package_that_diffusers_does_not():
    optional = ("datasets", "peft", "sklearn", "skimage", "matplotlib", "torch_pruning", "torchvision", "av", "lpips")
    # What our models and pipelines build on, first: diffusers and transformers import some of these where installed.
    code = f"""
import sys
import tomllib
import accelerate, diffusers, torch, transformers
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from diffusers.loaders import PeftAdapterMixin
before = set(sys.modules)
from vdmini_diffusers import distill
added = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(added & set({optional})))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_optional_packages_are_imported_only_inside_functions():
    required = {
        "accelerate",
        "diffusers",
        "filelock",
        "huggingface_hub",
        "numpy",
        "PIL",
        "psutil",
        "safetensors",
        "torch",
        "tqdm",
        "typer",
    }
    allowed = required | {"transformers", "vdmini_diffusers"} | set(sys.stdlib_module_names)
    for path in source_files():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node in body:
            if isinstance(node, ast.Import):
                tops = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                tops = {node.module.split(".")[0]}
            else:
                continue
            assert tops <= allowed, f"{relative(path)} imports {tops - allowed} at its top"


class TestSetup:
    @pytest.fixture
    def arguments(self):
        """The keyword arguments of `setup(...)` that are written out, without running it."""
        tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
        call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
        return {
            keyword.arg: ast.literal_eval(keyword.value)
            for keyword in call.keywords
            if keyword.arg in ("packages", "package_dir", "package_data")
        }

    def test_every_package_it_lists_is_there_and_every_package_is_listed(self, arguments):
        folders = {path.parent for path in PACKAGE.rglob("__init__.py")} | {
            PACKAGE / "model_cards",
            PACKAGE / "pipelines",
        }
        names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
        assert set(arguments["packages"]) == names
        assert len(arguments["packages"]) == len(set(arguments["packages"]))

    def test_every_folder_with_python_files_is_a_package(self):
        folders = {path.parent for path in source_files()}
        assert [relative(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []

    def test_the_pipelines_are_mapped_to_the_folder_that_the_link_points_to(self, arguments):
        assert arguments["package_dir"]["vdmini_diffusers.pipelines"] == "pipelines"
        if (PACKAGE / "pipelines").is_symlink():  # on Windows, git may write a file with the target's name
            assert (PACKAGE / "pipelines").resolve() == ROOT / "pipelines"

    def test_package_data_is_there(self, arguments):
        for package, patterns in arguments["package_data"].items():
            for pattern in patterns:
                assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package}: {pattern}"


def defined_names(path: Path) -> set[str]:
    """The public classes and functions at the top of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")}


def test_no_two_modules_define_a_public_name():
    homes: dict[str, list[str]] = {}
    for path in source_files():
        # A function that is a command of `vdmini` has the name that people type.
        is_command = path.parent == PACKAGE / "cli"
        for name in defined_names(path) - ({path.stem} if is_command else set()):
            homes.setdefault(name, []).append(relative(path))
    # Published files repeat what two of them need; each family defines the same functions.
    repeats = {"vdmini_diffusers/models", "vdmini_diffusers/pipelines", "vdmini_diffusers/families"}
    twice = {
        name: paths
        for name, paths in homes.items()
        if len(paths) > 1
        and not (len(folders := {str(Path(path).parent) for path in paths}) == 1 and folders <= repeats)
    }
    assert twice == {}


@pytest.mark.parametrize("path", [*source_files(), *scripts()], ids=relative)
def test_private_names_are_imported_by_no_other_module(path):
    private = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith("vdmini_diffusers"))
        for alias in node.names
        if re.match(r"_[^_]", alias.name)
    }
    assert private == set()


def test_the_report_of_the_house_counts_rooms_and_imports(capsys):
    import house_report

    assert house_report.room_of(PACKAGE / "pruning" / "plans" / "base.py") == "pruning/plans"
    assert house_report.room_of(PACKAGE / "quickstart.py") == "quickstart.py"
    pairs = house_report.imports(source_files())
    assert ("quickstart.py", "demo") in pairs and ("pruning", "pruning/plans") in pairs
    assert not {pair for pair in pairs if "pipelines" in pair[0]}  # third-party imports only
    house_report.main()
    assert f"{len(pairs)} imports from one to another" in capsys.readouterr().out


@pytest.fixture(scope="module")
def asked_for():
    """Every requirement of setup.py, of all extras, and of the build."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    texts |= set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"])
    requirements = [Requirement(text) for text in texts if re.fullmatch(r"[\w-]+ ?[<>=!~][\d.,<>=!~ ]+", text)]
    assert len(requirements) >= 25
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.fixture(scope="module")
def locked():
    """Versions by name; there may be several, for different versions of Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions: dict[str, set[str]] = {}
    for requirement in (Requirement(line) for line in lines if line and not line.lstrip().startswith("#")):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier))
        versions.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier)[2:])
    return versions


class TestVersions:
    """What setup.py asks for, and what constraints.txt locks."""

    def test_all_that_is_asked_for_is_locked_within_its_range(self, asked_for, locked):
        assert set(asked_for) - set(locked) == set()
        ranges = {name: requirement.specifier for name, requirement in asked_for.items()}
        assert [(name, v) for name in ranges for v in locked[name] if not ranges[name].contains(v)] == []

    def test_every_requirement_has_a_lower_bound(self, asked_for):
        assert [str(requirement) for requirement in asked_for.values() if ">=" not in str(requirement)] == []

    def test_what_locked_packages_need_is_locked_too(self, locked):
        # By the metadata of those that are installed: what they need would otherwise be whatever is newest.
        installed = {canonicalize_name(each.name): each for each in importlib.metadata.distributions()}
        missing = {
            f"{name} needs {text}"
            for name in set(locked) & set(installed)
            if installed[name].version.split("+")[0] in locked[name]
            for text in installed[name].requires or []
            if (needed := Requirement(text)).marker is None or needed.marker.evaluate({"extra": ""})
            if canonicalize_name(needed.name) not in locked
        }
        assert missing == set()
