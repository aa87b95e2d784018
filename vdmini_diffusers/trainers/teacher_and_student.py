"""A pair of teacher and student, by their names: how they are checked, loaded, validated and saved."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import export_to_gif
from torch import nn
from torch.utils.data import Dataset

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.distillation.arguments import CriticArguments, DenoiserTrainingArguments
from vdmini_diffusers.distillation.engine import DTYPES, whole_state_dict
from vdmini_diffusers.distillation.tasks.base import Encode, Generators, Task
from vdmini_diffusers.families import ClipShape, TokenGrid, TrainableFamily, find_trainable_family
from vdmini_diffusers.pruning import PruningPlan
from vdmini_diffusers.pruning.student_folder import check_student, read_plan
from vdmini_diffusers.pruning.survey import build_empty
from vdmini_diffusers.serialization.repository import fetch_file
from vdmini_diffusers.serialization.safetensors_reader import read_json
from vdmini_diffusers.trainers.critics import DISCRIMINATOR, ModelSource, find_multi_step_model
from vdmini_diffusers.trainers.trained_pipeline import (
    clone_with_weights,
    finished_files,
    save_trained_pipeline,
    student_card,
    student_companions,
)


# For each kind of input of a family: its task's name for people, and the argument with inputs to validate on.
INPUTS = {"image": "image to video", "text": "text to video"}
VALIDATION = {"image": "validation_images", "text": "validation_prompts"}

FamilyT = TypeVar("FamilyT", bound=TrainableFamily)


class TeacherAndStudent(ABC, Generic[FamilyT]):
    """A teacher and its pruned student. Where there may be none, the teacher itself is distilled to fewer steps.

    Args:
        teacher_name: folder or Hub id of a pipeline. It is frozen.
        student_name: folder or Hub id of a pruned one, as `prune_pipeline` writes it.
        variant: variant of the teacher's weight files, e.g. `"fp16"`.
        revision: revision of the teacher on the Hub.
        student_variant: variant of the student's weight files.

    Attributes:
        family: the family of both, once the pair is checked.
        plan: that by which the student was pruned; None if there is no student.
        companions: files that go from the pruned student's folder to the trained one's, by their paths in it.
        card: the model card of the result.
        teacher: the teacher's pipeline, once it is loaded.
        clip_shape: the shape of the clips trained on, once it is known.
    """

    task: ClassVar[str]  # the objective of the families that this class trains
    keeps_variant: ClassVar[bool] = False  # whether the result's weights are of the pruned student's variant
    family: FamilyT
    plan: PruningPlan | None
    companions: Mapping[str, Path]
    card: str
    teacher: DiffusionPipeline
    clip_shape: ClipShape

    def __init__(
        self,
        teacher_name: str,
        student_name: str | None,
        variant: str | None = None,
        revision: str | None = None,
        student_variant: str | None = None,
    ):
        self.teacher_name, self.student_name, self.student_variant = teacher_name, student_name, student_variant
        self.teacher_source = ModelSource(teacher_name, variant, revision)
        self._weights = {"variant": variant, "revision": revision}

    @property
    def teacher_denoiser(self) -> Any:
        return self.teacher.components[self.family.denoiser]

    def sources(self) -> dict[str, str | None]:
        """The models that are read, by what they are."""
        return {"the teacher": self.teacher_name, "the student": self.student_name}

    def check(self, args: DenoiserTrainingArguments) -> None:
        """Read all but the weights: families, configs, and the files that the result needs besides.

        Raises:
            CheckpointError: if a config describes no network.
            OSError: if a model cannot be found.
            PruningPlanError: a `ValueError`; if the student's plan does not lead from this teacher to this student.
            ValueError: if a model is of another objective, or a student lacks its plan, provenance or card.
        """
        self.family, self.plan = self.check_family(self.teacher_name, self._weights["revision"]), None
        teacher = self.denoiser_config(self.teacher_source)
        self.check_teacher(teacher)
        if self.student_name is not None:
            self.check_family(self.student_name)
            self.companions = student_companions(self.student_name, self.family.denoiser)
            self.card = student_card(args, self.student_name, self.keeps_variant)
            self.plan = read_plan(self.student_name, self.family.denoiser)
            student = self.denoiser_config(ModelSource(self.student_name))
            check_student(self.plan, teacher, student, self.student_name)

    def check_teacher(self, config: Mapping[str, Any]) -> None:
        """Raises `ValueError` if no teacher of this objective has such a config."""

    def denoiser_config(self, source: ModelSource) -> Mapping[str, Any]:
        """The config of a pipeline's denoiser, with the defaults of what it does not say. Its weights are not read.

        Raises:
            CheckpointError: if it describes no network.
            OSError: if it cannot be found.
        """
        name = self.family.denoiser
        file = fetch_file(source.name, f"{name}/config.json", source.revision)
        config, denoiser = read_json(file, dict), self.family.denoisers[name]
        classes = {cls.__name__: cls for cls in denoiser.teachers}
        cls = classes.get(str(config.get("_class_name")), denoiser.student)
        return build_empty(lambda: cls.from_config(config), file, name).config

    def find_critic_backbone(self, args: CriticArguments) -> ModelSource | None:
        """The network that carries the critics' features; None if they see the latents. To be called after `check`.

        Raises:
            OSError: if it cannot be found.
            ValueError: if none is named, or it is of another objective.
        """
        if args.critic_backbone == "none":
            return None
        if args.critic_backbone == "teacher":
            return self.teacher_source
        if args.critic_backbone is not None:
            source = ModelSource(args.critic_backbone, args.critic_backbone_variant, args.critic_backbone_revision)
        elif (found := self.multi_step_model()) is not None:
            source = found
        else:
            raise ValueError(
                f"The critics stand on the multi-step model that the teacher was made of, and {self.teacher_name} does"
                " not name it (or it is not there any more): give it as `--critic_backbone`. `teacher` takes the"
                " teacher itself, which knows few noise levels, and `none` a light critic on the latents."
            )
        self.check_family(source.name, source.revision)
        return source

    def multi_step_model(self) -> ModelSource | None:
        """The multi-step model that the teacher was made of, if it is known. A model that names none, and becomes a
        few-step teacher here, is one itself."""
        found = find_multi_step_model(self.teacher_source)
        return self.teacher_source if found is None and self.student_name is None else found

    def load_critic_backbone(self, source: ModelSource, dtype: torch.dtype) -> nn.Module:
        """Load the network that carries the critics' features, if it is not loaded. To be called after `load_teacher`.

        Raises:
            ValueError: if it takes other inputs than the teacher.
        """
        if source == self.teacher_source:
            return self.teacher_denoiser
        return self.load_denoiser(source, dtype)[0]

    def checkpoint_activations(self, model: Any) -> None:
        """Let a student, or the critics' backbone, compute activations again in the backward pass."""
        model.enable_gradient_checkpointing()

    def rest_encoders(self) -> None:
        """Free the device of what only encodes clips or shows videos. To be called where clips are encoded already."""

    def load_denoiser(self, source: ModelSource, dtype: torch.dtype) -> tuple[Any, Any]:
        """The denoiser of another pipeline of the family, with the pipeline's scheduler.

        Raises:
            ValueError: if it takes other inputs than the teacher's.
        """
        name, variant, revision = source
        without = dict.fromkeys(set(self.teacher.components) - {self.family.denoiser, "scheduler"})
        pipe = self.family.pipeline.from_pretrained(name, variant=variant, revision=revision, dtype=dtype, **without)
        denoiser = pipe.components[self.family.denoiser]
        for field in ("in_channels", "out_channels", "cross_attention_dim"):
            found, expected = (model.config.get(field) for model in (denoiser, self.teacher_denoiser))
            if found != expected:
                raise ValueError(
                    f"The denoiser of {name} has `{field}` {found}, and the teacher's {expected}: inputs differ."
                )
        return denoiser, pipe.scheduler

    def load_teacher(self, args: DenoiserTrainingArguments, accelerator: Accelerator) -> list[nn.Module]:
        """Load the teacher, and return all that is frozen and goes to the device. To be called after `check`."""
        self.teacher = self.load_pipeline(dtype=DTYPES[accelerator.mixed_precision])
        return [model for model in self.teacher.components.values() if isinstance(model, nn.Module)]

    def check_family(self, name: str, revision: str | None = None) -> FamilyT:
        """The family of a pipeline. Raises `ValueError` if it is trained by another objective than this run's."""
        family: Any = find_trainable_family(name, revision)
        if family.task != self.task:
            raise ValueError(
                f"{name} is for {INPUTS[family.given]} ({family.name}), and this run is for another objective,"
                f" {self.task!r}: teacher, student and ODE teacher are of one task (`--task`)."
            )
        return family

    def load_pipeline(self, **options: Any) -> Any:
        """The teacher's pipeline, opened by the family's class. `options` are those of `from_pretrained`."""
        return self.family.pipeline.from_pretrained(self.teacher_name, **self._weights, **options)

    def load_student(
        self, args: DenoiserTrainingArguments, accelerator: Accelerator
    ) -> tuple[Any, PruningPlan | None]:
        """The denoiser to train, in float32, and the plan by which it was pruned, if it was."""
        subfolder = self.family.denoiser
        if self.student_name is None:
            return self.load_pipeline(dtype=torch.float32).components[subfolder], None
        student_class: Any = self.family.denoisers[subfolder].student
        denoiser = student_class.from_pretrained(
            self.student_name, subfolder=subfolder, variant=self.student_variant, dtype=torch.float32
        )
        return denoiser, self.plan

    def precomputed(self, folder: str) -> Dataset:
        """Read what `training/precompute_latents.py` wrote.

        Raises:
            ValueError: if it was written for another objective.
        """
        dataset = PrecomputedLatents(folder)
        self._check_tensors(dataset[0], folder)
        return dataset

    def _check_tensors(self, sample: Mapping[str, Any], folder: str) -> None:
        if missing := sorted(set(self.family.sample_tensors) - set(sample)):
            latents_for = INPUTS[self.family.given].replace(" ", "_")
            raise ValueError(
                f"{folder} has no {', '.join(missing)}: it was not made by `training/precompute_latents.py"
                f" --latents_for {latents_for}`."
            )

    def set_clip_shape(self, clips: VideoDataArguments | Mapping[str, Any]) -> None:
        """Note the shape of the clips, from the arguments or from a precomputed sample, for validation."""
        if isinstance(clips, VideoDataArguments):
            shape = (clips.num_frames, clips.height, clips.width, clips.fps, clips.motion_bucket_id)
            self.clip_shape = ClipShape(*shape)
        else:
            self.clip_shape = self.family.clip_shape(clips, self.teacher)

    def encode(self, batch: Mapping[str, Any], generators: Generators) -> Mapping[str, Any]:
        """A batch of videos to one of latents and conditions."""
        return self.family.encode(batch, self.teacher, generators)

    def feature_pairs(self, plan: PruningPlan) -> Sequence[tuple[str, str]]:
        """The modules of student and teacher whose features ICD compares (Eq. 4)."""
        return plan.feature_pairs(self.teacher_denoiser.config)

    @abstractmethod
    def critic_channels(self, critic_args: Any, config: Mapping[str, Any]) -> dict[str, int]:
        """The features of a backbone with `config` that critics see: their numbers of channels, by module.

        Raises:
            ValueError: if the backbone has none of them.
        """

    @property
    def lora_targets(self) -> Sequence[str]:
        """The names of the linear layers that LoRA is added to."""
        return ("to_q", "to_k", "to_v", "to_out.0")

    @property
    def token_grid(self) -> TokenGrid | None:
        """The grid of the tokens, if the denoiser is a transformer."""
        return None

    @abstractmethod
    def make_task(self, denoiser: nn.Module, critic_args: CriticArguments, encode: Encode | None) -> Task:
        """The training objective of `denoiser`, which may be wrapped."""

    def settings(self) -> dict[str, Any]:
        """The objective's own settings, for the record."""
        return {}

    def validation_inputs(self, args: Any) -> list[str]:
        """The images or prompts that validation videos are made from."""
        return [str(given) for given in getattr(args, VALIDATION[self.family.given])]

    def write_validation_videos(
        self, args: Any, accelerator: Accelerator, prepared: nn.Module, denoiser: Any, step: int
    ) -> list[Path]:
        """Videos with the present weights, as GIFs in `output_dir/validation`. All processes must call it.

        Args:
            prepared: `denoiser` as the accelerator has wrapped it.
        """
        state_dict = whole_state_dict(accelerator, prepared)
        if not accelerator.is_main_process:
            return []
        shown = clone_with_weights(denoiser, state_dict).to(self.teacher.device, self.teacher.dtype).eval()
        return self._write_videos(args, self._sample_videos(args, self.pipeline_with(shown)), step)

    def _sample_videos(self, args: Any, pipe: DiffusionPipeline) -> list[Any]:
        """One video for each of the validation inputs."""
        return [
            self.family.sample(pipe, given, self.clip_shape, torch.Generator().manual_seed(args.seed))
            for given in self.validation_inputs(args)
        ]

    def _write_videos(self, args: Any, videos: Iterable[Any], step: int) -> list[Path]:
        folder = args.output_dir / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, frames in enumerate(videos):
            paths.append(folder / f"step-{step:06d}-{i}.gif")
            export_to_gif(frames, str(paths[-1]), fps=max(1, round(self.clip_shape.fps)))  # unknown is 0
        return paths

    def pipeline_with(self, denoiser: ModelMixin, **parts: Any) -> DiffusionPipeline:
        """The teacher's pipeline with another denoiser, and other `parts` by name."""
        return self.family.pipeline(**{**self.teacher.components, **parts, self.family.denoiser: denoiser})

    def save(
        self,
        args: DenoiserTrainingArguments,
        accelerator: Accelerator,
        prepared: nn.Module,
        denoiser: Any,
        discriminator: ModelMixin | None = None,
    ) -> None:
        """Write the whole pipeline with the present weights, its plan and its card to `output_dir`. All processes must
        call it.

        Args:
            prepared: `denoiser` as the accelerator has wrapped it.
            discriminator: heads that are saved beside it.
        """
        state_dict = whole_state_dict(accelerator, prepared)
        if not accelerator.is_main_process:
            return
        with finished_files(args.output_dir, "model_index.json", anew=[DISCRIMINATOR]) as aside:
            save_trained_pipeline(
                replace(args, output_dir=aside),
                self._whole_pipeline,
                denoiser,
                state_dict,
                self.companions,
                self.card,
            )
            if discriminator is not None:
                discriminator.save_pretrained(aside / DISCRIMINATOR)

    def _whole_pipeline(self, denoiser: ModelMixin) -> DiffusionPipeline:
        """With the teacher's other parts in float32."""
        whole = self.load_pipeline(**{self.family.denoiser: None}, dtype=torch.float32)
        models = {name: part for name, part in whole.components.items() if isinstance(part, nn.Module)}
        return self.pipeline_with(denoiser, **models)
