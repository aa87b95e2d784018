import copy

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from tiny import randomise, student_of, tiny_teacher_unet
from torch.utils.data import DataLoader

from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures, CriticSettings
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads, LatentDiscriminator
from vdmini_diffusers.distillation.engine import whole_state_dict
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.loop import LoopSettings, gradient_norms, icmd_training_loop
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.pruning import VDMINI_UNET


def latents(count: int = 6) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        {
            "latents": draw(2, 4, 8, 8),
            "image_latents": draw(4, 8, 8),
            "image_embeds": draw(1, 16),
            "added_time_ids": torch.tensor([6.0, 127.0, 0.02]),
        }
        for _ in range(count)
    ]


@pytest.fixture(autouse=True)
def one_accelerator_a_test():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Run:
    """A tiny run with everything switched on; `start` may be called once."""

    def __init__(self, output_dir, samples=None, **changes):
        torch.manual_seed(0)
        self.settings = LoopSettings(
            **(
                {
                    "seed": 5,
                    "max_train_steps": 4,
                    "train_batch_size": 1,
                    "gradient_accumulation_steps": 2,
                    "checkpointing_steps": 2,
                }
                | changes
            )
        )
        self.task = SingleStepTask(SVD)
        self.teacher = randomise(tiny_teacher_unet()).eval().requires_grad_(False)
        self.student = student_of(self.teacher, VDMINI_UNET).train()
        self.samples = latents() if samples is None else samples
        self.pairs = VDMINI_UNET.feature_pairs(self.teacher.config)
        self.checkpoints = Checkpoints(output_dir)
        self.learning_rate = 1e-3
        self.critics = [self.critic("mca", {"teacher": 1}), self.critic("sf_v", {"data": 0}, r1_weight=1e-2)]
        self.critic_features = None
        self.validate = None

    def critic(self, name, real, **options):
        channels = dict(zip(self.task.critic_taps, self.teacher.config.block_out_channels, strict=True))
        heads = DiscriminatorHeads(channels, condition_dim=16, width=32)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
        return Critic(name, heads, optimizer, CriticSettings(real=real, **options))

    def start(self):
        accelerator = Accelerator(
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=self.settings.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=1),
            cpu=True,
        )
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=self.learning_rate)
        lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        dataloader = DataLoader(self.samples, batch_size=self.settings.train_batch_size, shuffle=True, drop_last=True)
        student, optimizer, dataloader = accelerator.prepare(self.student, optimizer, dataloader)
        return icmd_training_loop(
            accelerator=accelerator,
            task=self.task,
            student=student,
            teacher=self.teacher,
            dataloader=dataloader,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            settings=self.settings,
            checkpoints=self.checkpoints,
            pairs=self.pairs,
            critics=self.critics,
            critic_features=self.critic_features,
            validate=self.validate,
        )


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_moves_the_student_and_the_critics_and_never_the_teacher(tmp_path):
    run = Run(tmp_path, max_train_steps=2)
    student, teacher = copy.deepcopy(run.student), copy.deepcopy(run.teacher)
    heads = [copy.deepcopy(critic.heads) for critic in run.critics]
    run.start()
    assert equal(run.teacher, teacher) and not run.teacher.training
    assert all(p.grad is None for p in run.teacher.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(student.parameters(), run.student.parameters(), strict=True)]
    assert all(moved)
    assert not any(equal(a, critic.heads) for a, critic in zip(heads, run.critics, strict=True))


def test_a_run_stopped_and_resumed_ends_bit_equal_to_one_that_was_not(tmp_path):
    few = {"samples": latents(3), "max_train_steps": 2, "checkpointing_steps": 1}  # an epoch is a step and a half
    whole = Run(tmp_path / "whole", **few)
    whole.start()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    first = Run(tmp_path / "halves", **{**few, "max_train_steps": 1})
    first.start()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    second = Run(tmp_path / "halves", **few)
    second.start()
    assert not equal(first.student, whole.student)
    assert equal(second.student, whole.student)
    assert all(equal(a.heads, b.heads) for a, b in zip(second.critics, whole.critics, strict=True))


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 3]), (3, [3]), (1000, [3])])
def test_a_run_is_validated_every_so_many_steps_and_once_at_its_end(tmp_path, every, steps):
    validated = []
    run = Run(tmp_path, max_train_steps=3, gradient_accumulation_steps=1, validation_steps=every)
    run.critics, run.pairs, run.validate = [], (), validated.append
    run.start()
    assert validated == steps


def test_a_critic_stays_as_it_is_before_its_first_step(tmp_path):
    run = Run(tmp_path, max_train_steps=1)
    before = copy.deepcopy(run.critics[0].heads)
    run.start()
    assert equal(run.critics[0].heads, before)


@pytest.mark.slow
def test_icd_alone_pulls_the_students_features_to_the_teachers(tmp_path, monkeypatch):
    from vdmini_diffusers.distillation.loss_log import LossLog

    seen = []
    monkeypatch.setattr(LossLog, "add", lambda self, losses: seen.append(losses["icd"].item()))
    run = Run(tmp_path, samples=latents(1), max_train_steps=30, gradient_accumulation_steps=1, checkpointing_steps=99)
    run.critics = []
    run.task = SingleStepTask(
        SVD, reconstruction_weight=0.0, num_noise_levels=2
    )  # one level: the same inputs each step
    run.learning_rate = 3e-3
    run.start()
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def test_without_icd_and_mca_the_teacher_only_carries_the_critics_features(tmp_path):
    run = Run(tmp_path, max_train_steps=1)
    run.pairs, run.critics = (), run.critics[1:]
    calls = []
    run.teacher.conv_out.register_forward_hook(lambda *_: calls.append(1))
    run.start()
    assert not calls


def test_the_light_critic_needs_no_backbone(tmp_path):
    run = Run(tmp_path, max_train_steps=1)
    heads = LatentDiscriminator(4, condition_dim=16, widths=(32,))
    before = copy.deepcopy(heads)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    run.critics = [Critic("mca", heads, optimizer, CriticSettings(real={"teacher": 0}))]
    run.critic_features = CriticFeatures(run.task, None)
    run.start()
    assert not equal(heads, before)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    run = Run(tmp_path, max_train_steps=1, checkpointing_steps=1)
    run.start()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    samples = latents()
    for sample in samples:
        sample["latents"] = sample["latents"] * float("nan")
    with pytest.raises(FloatingPointError, match=r"loss of step 2 is not finite \(reconstruction nan"):
        Run(tmp_path, samples=samples).start()
    assert [folder.name for folder in Checkpoints(tmp_path).complete()] == ["checkpoint-000001"]


def test_weights_that_became_nan_in_the_last_step_are_not_saved(tmp_path):
    run = Run(tmp_path, max_train_steps=1, gradient_accumulation_steps=1)
    run.critics, run.pairs, run.learning_rate = [], (), float("inf")  # its losses are finite
    with pytest.raises(FloatingPointError, match="After step 1, the trained weights hold values that are not finite"):
        run.start()
    assert Checkpoints(tmp_path).complete() == []


def test_a_loss_s_gradient_norm_is_the_mean_over_clips_of_what_each_clip_alone_would_have():
    denoised = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).view(2, 1, 2, 1, 1).requires_grad_()  # two clips
    slopes = torch.tensor([[3.0, 4.0], [6.0, 8.0]]).view_as(denoised)
    losses = {
        "task": (slopes * denoised).flatten(1).sum(dim=1).mean(),  # each clip's gradient is half of its slopes
        "mca": denoised.square().sum(),  # and here twice its values
        "icd": denoised.sum(),  # taken at features, and so not of interest
    }
    norms = gradient_norms(losses, denoised)
    assert norms.keys() == {"task_gradient", "mca_gradient"}
    assert norms["task_gradient"].item() == pytest.approx(2 * (2.5 + 5) / 2)
    assert norms["mca_gradient"].item() == pytest.approx(2 * (10 + 2) / 2)
    assert denoised.grad is None
    torch.stack(list(losses.values())).sum().backward()  # the graph is still there


def test_a_compiled_student_is_tapped_and_its_weights_have_the_names_of_the_bare_one():
    accelerator = Accelerator(cpu=True, dynamo_backend="eager")
    bare = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    compiled = accelerator.prepare(bare)
    assert set(whole_state_dict(accelerator, compiled)) == set(bare.state_dict()) != set(compiled.state_dict())
    for _ in range(2):  # taps of each step are new ones
        with FeatureTaps(bare, ["0"]) as features:
            output = compiled(torch.ones(1, 2))
        assert torch.equal(output, bare[1](features["0"]))


def test_too_few_samples_for_a_batch_is_an_error_and_no_endless_wait(tmp_path):
    with pytest.raises(ValueError, match="fewer samples than one batch"):
        Run(tmp_path, samples=latents(2), train_batch_size=3).start()
