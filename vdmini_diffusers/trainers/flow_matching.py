"""Pairs of video transformers, which are trained to predict velocities: FastVideo's objective (appendix D)."""

import inspect
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn
from torch.utils.data import Dataset

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.fastvideo_parquet import FastVideoParquet, holds_parquet
from vdmini_diffusers.distillation.engine import DTYPES
from vdmini_diffusers.distillation.flow_matching_arguments import (
    FlowMatchingArguments,
    FlowMatchingCriticArguments,
    FlowMatchingTrainingArguments,
)
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule
from vdmini_diffusers.distillation.sharding import (
    is_sharded,
    is_sharding,
    load_sharded,
    training_policy,
    whole_tensors,
)
from vdmini_diffusers.distillation.tasks.base import Encode
from vdmini_diffusers.distillation.tasks.flow_matching import FlowMatchingTask
from vdmini_diffusers.distillation.velocity import FlowMatchingPath, VelocityPath, VPredictionPath
from vdmini_diffusers.families import TokenGrid, TransformerFamily
from vdmini_diffusers.pruning import PruningPlan, TransformerPruningPlan
from vdmini_diffusers.serialization.pipeline_folder import read_model_index
from vdmini_diffusers.serialization.repository import fetch_file
from vdmini_diffusers.serialization.safetensors_reader import read_json
from vdmini_diffusers.trainers.critics import DISCRIMINATOR, ModelSource
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.trained_pipeline import finished_files
from vdmini_diffusers.trainers.trained_transformer import merged_tensors, pipeline_files, save_weights, weights_folder


class FlowMatchingPair(TeacherAndStudent[TransformerFamily]):
    """A video transformer and its student, which may be too large for any one process.

    Of the teacher's pipeline, the transformer is loaded, and its encoders and VAE only where clips are encoded or
    validation videos made. Where FSDP divides the student, it is read, saved and shown in parts, in the result as
    well: its files have the names, and its weights the dtype, that the pruned student's have. The rest of the
    pipeline's folder is copied from there.
    """

    task = "flow_matching"
    keeps_variant = True
    student_name: str

    def __init__(
        self,
        teacher_name: str,
        student_name: str,
        flow_args: FlowMatchingArguments,
        variant: str | None = None,
        revision: str | None = None,
        student_variant: str | None = None,
    ):
        super().__init__(teacher_name, student_name, variant, revision, student_variant)
        self.flow_args = flow_args

    def multi_step_model(self) -> ModelSource:
        return self.teacher_source

    @property
    def lora_targets(self) -> Sequence[str]:
        return self.family.lora_targets

    def check(self, args: FlowMatchingTrainingArguments) -> None:
        super().check(args)
        for name, revision in ((self.teacher_name, self.teacher_source.revision), (self.student_name, None)):
            index, file = read_model_index(name, revision)
            absent = ([None, None], None)
            if second := [part for part in self.family.denoisers if index.get(part) not in absent][1:]:
                raise ValueError(
                    f"{file} has two denoisers for different noise levels, and there is no objective yet to train"
                    f" them by: {self.family.denoiser} and {', '.join(second)}."
                )

    def find_critic_backbone(self, args: FlowMatchingCriticArguments) -> ModelSource | None:
        source = super().find_critic_backbone(args)
        if source is not None:
            config = fetch_file(source.name, f"{self.family.denoiser}/config.json", source.revision)
            self.critic_channels(args, read_json(config))  # refuses now, and not when all is loaded
        return source

    def load_teacher(self, args: FlowMatchingTrainingArguments, accelerator: Accelerator) -> list[nn.Module]:
        dtype, denoiser = DTYPES[accelerator.mixed_precision], self.family.denoiser
        loaded = {"scheduler"} if args.shard_teacher else {"scheduler", denoiser}
        without = dict.fromkeys(set(self.family.layout.components) - loaded)
        self.teacher = self.load_pipeline(dtype=dtype, **without)
        if args.shard_teacher:
            source = self.teacher_source
            folder = weights_folder(source.name, denoiser, source.revision)
            teachers = {cls.__name__: cls for cls in self.family.denoisers[denoiser].teachers}
            cls = teachers[read_json(folder / "config.json")["_class_name"]]
            model = load_sharded(cls, folder, source.variant, dtype, accelerator.device)
            self.teacher = self.pipeline_with(model)
        if args.validation_prompts:
            self._load_encoders()
        return [model for model in self.teacher.components.values() if isinstance(model, nn.Module)]

    def load_student(
        self, args: FlowMatchingTrainingArguments, accelerator: Accelerator
    ) -> tuple[Any, PruningPlan | None]:
        """In float32; what only LoRA is added to is in the teacher's dtype."""
        name, dtype = self.family.denoiser, DTYPES[accelerator.mixed_precision]
        cls: Any = self.family.denoisers[name].student
        folder = weights_folder(self.student_name, name)
        if is_sharding(accelerator):
            if args.rank is not None:
                raise ValueError("`--rank` trains LoRA on whole weights: leave it out, or FSDP.")
            plugin: Any = accelerator.state.fsdp_plugin
            plugin.auto_wrap_policy = None  # blocks are divided here, while they are empty
            policy = training_policy(dtype)
            student = load_sharded(cls, folder, self.student_variant, torch.float32, accelerator.device, policy)
        else:
            own = torch.float32 if args.rank is None else dtype
            student = cls.from_pretrained(folder, variant=self.student_variant, dtype=own)
        return student, self.plan

    def write_validation_videos(
        self, args: Any, accelerator: Accelerator, prepared: nn.Module, denoiser: Any, step: int
    ) -> list[Path]:
        """By the trained network itself, of which there may be no second one: all processes film, if it is divided."""
        if not (accelerator.is_main_process or is_sharded(denoiser)):
            return []
        denoiser.eval()
        with torch.no_grad(), accelerator.autocast():
            videos = self._sample_videos(args, self.pipeline_with(denoiser))
        denoiser.train()
        return self._write_videos(args, videos, step) if accelerator.is_main_process else []

    def save(
        self,
        args: FlowMatchingTrainingArguments,
        accelerator: Accelerator,
        prepared: nn.Module,
        denoiser: Any,
        discriminator: ModelMixin | None = None,
    ) -> None:
        name, is_main = self.family.denoiser, accelerator.is_main_process
        if not (is_main or is_sharded(denoiser)):
            return
        student = pipeline_files(self.student_name, name, self.student_variant)
        finished = partial(finished_files, args.output_dir, "model_index.json", anew=[DISCRIMINATOR])
        with finished() if is_main else nullcontext() as aside:
            tensors_of = partial(whole_tensors, denoiser)
            if args.rank is not None and aside is not None:
                self._save_lora(aside, denoiser)
                tensors_of = partial(merged_tensors, denoiser, student.weights)
            save_weights(tensors_of, student.weights, None if aside is None else aside / name)
            if aside is not None:
                for path in student.others:
                    (aside / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(student.folder / path, aside / path)
                (aside / "README.md").write_text(self.card, encoding="utf-8")
                if discriminator is not None:
                    discriminator.save_pretrained(aside / DISCRIMINATOR)

    def _save_lora(self, folder: Path, denoiser: Any) -> None:
        from peft.utils import get_peft_model_state_dict  # an optional dependency, for `--rank` only

        pipeline: Any = self.family.pipeline
        pipeline.save_lora_weights(folder / "lora", get_peft_model_state_dict(denoiser))

    def precomputed(self, folder: str) -> Dataset:
        """Also what FastVideo's preprocessing wrote."""
        if not holds_parquet(folder):
            return super().precomputed(folder)
        from_fastvideo: Any = self.family.from_fastvideo
        if from_fastvideo is None:
            raise ValueError(f"{folder} holds parquet files, and FastVideo has no {self.family.name}: encode again.")
        vae_config = read_json(fetch_file(self.teacher_name, "vae/config.json", self.teacher_source.revision))
        config = self.teacher_denoiser.config
        dataset = FastVideoParquet(folder, partial(from_fastvideo, config=config, vae_config=vae_config))
        self._check_tensors(dataset[0], folder)
        return dataset

    def _check_tensors(self, sample: Mapping[str, Any], folder: str) -> None:
        super()._check_tensors(sample, folder)
        config, shape = self.teacher_denoiser.config, sample["latents"].shape
        grids = (self.token_grid(config, [1, *(size - less for size in shape)]) for less in (0, 1))
        if any(tokens == fewer for tokens, fewer in zip(*grids, strict=True)):  # what is left over makes no token
            raise ValueError(
                f"{folder} has latents of the shape {tuple(shape)}, whose frames, heights and widths the transformer"
                " cannot divide into tokens."
            )
        embedding = self.family.critic_condition({name: value[None] for name, value in sample.items()})
        for what, found, expected in (
            ("channels of latents", shape[1], config.in_channels),
            ("values of a text's embedding", embedding.shape[1], self.family.critic_condition_dim(self.teacher)),
        ):
            if found != expected:
                raise ValueError(
                    f"{folder} has {found} {what}, and {self.teacher_name} takes {expected}: it was encoded for"
                    " another model."
                )

    def set_clip_shape(self, clips: VideoDataArguments | Mapping[str, Any]) -> None:
        if isinstance(clips, VideoDataArguments):  # which are to be encoded
            self._load_encoders()
        super().set_clip_shape(clips)

    def _load_encoders(self) -> None:
        """Complete the teacher's pipeline, on the transformer's device."""
        if getattr(self.teacher, "vae", None) is not None:
            return
        denoiser, device = self.family.denoiser, self.teacher_denoiser.device
        pipe: DiffusionPipeline = self.load_pipeline(dtype=self.teacher_denoiser.dtype, **{denoiser: None})
        for model in pipe.components.values():
            if isinstance(model, nn.Module):
                model.to(device).eval().requires_grad_(False)
        self.teacher = pipe_of(type(pipe), {**pipe.components, denoiser: self.teacher_denoiser}, pipe.config)

    def pipeline_with(self, denoiser: ModelMixin, **parts: Any) -> DiffusionPipeline:
        components = {**self.teacher.components, **parts, self.family.denoiser: denoiser}
        return pipe_of(self.family.pipeline, components, self.teacher.config)

    def feature_pairs(self, plan: PruningPlan) -> Sequence[tuple[str, str]]:
        config = self.teacher_denoiser.config
        if self.flow_args.icd_places == "all_blocks":
            return plan.feature_pairs(config)
        assert isinstance(plan, TransformerPruningPlan), plan
        return pairs_after_removed_runs(plan, config)

    def critic_channels(self, critic_args: FlowMatchingCriticArguments, config: Mapping[str, Any]) -> dict[str, int]:
        """The video's tokens after every n-th block."""
        stride, class_name = critic_args.critic_block_stride, config["_class_name"]
        order = TransformerPruningPlan.keep_everything(class_name, config).running_order(config)
        blocks = next(chain for chain in order.values() if "video" in chain[0].streams)
        width = config["num_attention_heads"] * config["attention_head_dim"]
        chosen = blocks[stride - 1 :: stride]
        if not chosen:
            raise ValueError(
                f"`--critic_block_stride` {stride} is more than the {len(blocks)} blocks of the critics' backbone."
            )
        streams = [block.streams.index("video") for block in chosen]
        return {
            f"{block.list_name}.{block.number}" + (f"[{stream}]" if stream else ""): width
            for block, stream in zip(chosen, streams, strict=True)
        }

    @property
    def token_grid(self) -> TokenGrid:
        return self.family.token_grid

    def make_task(
        self, denoiser: nn.Module, critic_args: FlowMatchingCriticArguments, encode: Encode | None
    ) -> FlowMatchingTask:
        own = self.flow_args
        return FlowMatchingTask(
            self.family,
            self._path(critic_args),
            embedded_guidance=own.embedded_guidance,
            text_mask=own.text_mask,
            target=own.training_target,
            encode=encode,
        )

    def _path(self, critic_args: FlowMatchingCriticArguments) -> VelocityPath:
        """Flow matching, or v-prediction where the scheduler says so."""
        own, scheduler = self.flow_args, self.teacher.scheduler
        noise = critic_args.instance_noise_mean, critic_args.instance_noise_std
        # Schedulers of flow matching alone have no such field; UniPC, which is Wan's, has both kinds of noise.
        if scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction":
            density = own.timestep_density, own.logit_mean, own.logit_std, own.mode_scale
            return FlowMatchingPath(own.flow_shift, *density, *noise)
        if own.flow_shift != 1 or own.timestep_density != "uniform":
            raise ValueError(
                f"{self.teacher_name} predicts v at DDPM's timesteps, which are drawn uniformly: `--flow_shift` and"
                " `--timestep_density` are for models of flow matching."
            )
        return VPredictionPath(DiffusionSchedule.of(scheduler), *noise)

    def settings(self) -> dict[str, Any]:
        return asdict(self.flow_args)


def pipe_of(pipeline: type[Any], components: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """A pipeline of these components, with those settings of a config that its constructor takes."""
    settings = set(inspect.signature(pipeline.__init__).parameters) - components.keys() - {"self"}
    return pipeline(**components, **{name: config[name] for name in settings if name in config})


def pairs_after_removed_runs(
    plan: TransformerPruningPlan, teacher_config: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """The pairs of kept blocks after which a run was removed, with the run's last block.

    Nothing of the student stands before a run at the start of the teacher: there the first kept block is compared.
    """
    pairs = plan.feature_pairs(teacher_config)
    runs = plan.removed_runs(teacher_config)
    ends = {run[-1] for run in runs}
    begins = {f"{order[0].list_name}.{order[0].number}" for order in plan.running_order(teacher_config).values()}
    first = pairs[0][0] if any(run[0] in begins for run in runs) else None
    return tuple(
        (student, teacher)
        for student, teacher in pairs
        if teacher.partition("[")[0] in ends or student.partition("[")[0] == first
    )
