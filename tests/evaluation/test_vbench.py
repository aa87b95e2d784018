"""VBench's totals against published ones, and its lists of prompts, which are not trusted."""

import json

import pytest

from vdmini_diffusers.evaluation.vbench_scores import (
    I2V_SUITE,
    T2V_SUITE,
    Interval,
    read_results,
    total_of_parts,
    totals_of,
)
from vdmini_diffusers.evaluation.vbench_videos import Prompt, read_vbench_prompts, video_seed, wanted_videos


# VideoCrafter2 on VBench's leaderboard, in the order of T2V_SUITE.
VIDEOCRAFTER2 = (
    *(96.85, 98.22, 98.41, 97.73, 42.50, 63.13, 67.22),
    *(92.55, 40.66, 95.00, 92.92, 35.86, 55.29, 25.13, 25.84, 28.23),
)
TABLE_6 = {
    "Kling": (83.39, 75.68, 81.85),
    "VideoCrafter2": (82.20, 73.42, 80.44),
    "T2V-Turbo-v2": (85.13, 77.12, 83.52),
    "VDMini-T2V-Turbo": (83.33, 77.38, 82.14),
    "FastVideo": (85.09, 75.82, 83.24),
    "VDMini-T2V-HY": (84.34, 74.76, 82.42),
}
# SF-V in Table 1, which has all dimensions but camera motion.
SF_V = {
    "i2v_subject": 0.9748,
    "i2v_background": 0.9759,
    "subject_consistency": 0.9554,
    "background_consistency": 0.9663,
    "motion_smoothness": 0.9811,
    "dynamic_degree": 0.3213,
    "aesthetic_quality": 0.5989,
    "imaging_quality": 0.6848,
}


class TestTotals:
    def test_videocrafter2s_sixteen_dimensions_give_the_parts_and_the_total_of_table_6(self):
        scores = {name: score / 100 for name, score in zip(T2V_SUITE.dimensions, VIDEOCRAFTER2, strict=True)}
        totals = totals_of(scores, T2V_SUITE)
        assert str(totals.parts["quality"]) == "82.20" and str(totals.parts["semantic"]) == "73.42"
        assert str(totals.total) == "80.44" and totals.missing == ()

    @pytest.mark.parametrize("model", TABLE_6)
    def test_totals_of_table_6_follow_from_its_parts_to_their_rounding(self, model):
        quality, semantic, total = TABLE_6[model]
        found = total_of_parts({"quality": quality, "semantic": semantic}, T2V_SUITE)
        assert abs(found - total) <= 0.005 + 0.005  # the parts are rounded, and so is the total

    def test_a_missing_dimension_makes_an_interval_of_what_it_is_part_of_and_nothing_else(self):
        totals = totals_of(SF_V, I2V_SUITE)
        assert totals.missing == ("camera_motion",)
        quality, i2v = totals.parts["quality"], totals.parts["i2v"]
        assert quality.low == quality.high and i2v.high - i2v.low == pytest.approx(100 * 0.1 / 2.1)
        assert (str(quality), str(i2v), str(totals.total)) == ("78.00", "92.28 to 97.04", "85.14 to 87.52")
        whole = [totals_of({**SF_V, "camera_motion": end}, I2V_SUITE).total.low for end in (0.0, 1.0)]
        assert totals.total == Interval(*whole) and whole[1] - whole[0] == pytest.approx(100 * 0.1 / 2.1 / 2)

    def test_the_ends_of_all_ranges_give_nothing_and_everything(self):
        for suite in (T2V_SUITE, I2V_SUITE):
            for end, total in (("low", 0), ("high", 100)):
                scores = {name: getattr(dimension, end) for name, dimension in suite.dimensions.items()}
                assert totals_of(scores, suite).total.low == pytest.approx(total)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"imaging_quality": 68.48}, "should be a fraction"),
            ({"imaging_quality": float("nan")}, "should be a number"),
            ({"color": 0.5}, "VBench-I2V has no dimension color"),
        ],
    )
    def test_per_cent_nan_and_unknown_dimensions_are_refused(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            totals_of(SF_V | wrong, I2V_SUITE)


class TestResults:
    def test_results_of_several_files_are_merged_with_the_number_of_their_videos(self, tmp_path):
        video = {"video_path": "a-0.mp4", "video_results": 1.0}
        (tmp_path / "a_eval_results.json").write_text(json.dumps({"dynamic_degree": [0.25, [video] * 4]}))
        camera = {"camera_motion": [0.5, {"static": 0.5}, [video] * 2], "temporal_flickering": [0.9, []]}
        (tmp_path / "b_eval_results.json").write_text(json.dumps(camera))
        (tmp_path / "a_full_info.json").write_text("[]")
        assert read_results([tmp_path], I2V_SUITE) == {"camera_motion": (0.5, 2), "dynamic_degree": (0.25, 4)}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"dynamic_degree": [NaN, []]}', "should be a number"),
            ('{"dynamic_degree": 0.5}', "should be a list"),
            ('{"dynamic_degrees": [0.5, []]}', "no dimension 'dynamic_degrees'"),
            ('{"color": [0.5, []]}', "no dimension of VBench-I2V"),
            ("[]", "JSON object"),
        ],
    )
    def test_damaged_results_are_refused(self, tmp_path, content, message):
        (tmp_path / "x_eval_results.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_results([tmp_path], I2V_SUITE)

    def test_two_files_that_disagree_are_refused(self, tmp_path):
        for name, score in (("a", 0.1), ("b", 0.2)):
            (tmp_path / f"{name}_eval_results.json").write_text(json.dumps({"color": [score, []]}))
        with pytest.raises(ValueError, match="disagree on 'color'"):
            read_results([tmp_path], T2V_SUITE)


class TestPrompts:
    def write(self, tmp_path, *entries):
        (tmp_path / "list.json").write_text(json.dumps(entries))
        return tmp_path / "list.json"

    def test_a_prompt_that_comes_twice_is_one_with_the_dimensions_of_both(self, tmp_path):
        entries = [{"prompt_en": "a cat", "dimension": [name]} for name in ("color", "temporal_flickering")]
        file = self.write(tmp_path, *entries, {"prompt_en": "a dog", "dimension": ["scene"]})
        cat, dog = read_vbench_prompts(file)
        assert cat == Prompt("a cat", ("color", "temporal_flickering")) and (cat.num_videos, dog.num_videos) == (25, 5)
        names = [video.name for video in wanted_videos([cat, dog], seed=0)]
        assert names[24:26] == ["a cat-24.mp4", "a dog-0.mp4"] and len(names) == 30
        assert [prompt.text for prompt in read_vbench_prompts(file, ["scene"])] == ["a dog"]

    def test_image_to_video_has_five_of_each(self, tmp_path):
        file = self.write(tmp_path, {"prompt_en": "a", "dimension": ["temporal_flickering"], "image_name": "a.jpg"})
        assert len(wanted_videos(read_vbench_prompts(file), seed=0)) == 5

    def test_a_text_file_has_a_prompt_a_line(self, tmp_path):
        (tmp_path / "list.txt").write_text("In a still frame, a stop sign\n\n a façade \n", encoding="utf-8")
        assert [prompt.text for prompt in read_vbench_prompts(tmp_path / "list.txt")] == [
            "In a still frame, a stop sign",
            "a façade",
        ]

    def test_seeds_differ_by_prompt_index_and_run_and_by_nothing_else(self):
        seeds = {video_seed(prompt, index, run) for prompt in ("a", "b") for index in range(5) for run in (0, 1)}
        assert len(seeds) == 20 and all(0 <= seed < 2**63 for seed in seeds)
        assert video_seed("a cat", 0, 0) == 8643859747650885683  # or a resumed folder would hold other videos

    @pytest.mark.parametrize("text", ["../a", "a/b", "a\\b", ".hidden", "a\nb", "a\0b", "x" * 250])
    def test_a_prompt_that_leaves_its_folder_or_is_no_name_is_refused(self, tmp_path, text):
        with pytest.raises(ValueError, match="cannot be the name of a file"):
            read_vbench_prompts(self.write(tmp_path, {"prompt_en": text, "dimension": ["color"]}))
        with pytest.raises(ValueError, match="cannot be the name of a file"):
            entry = {"prompt_en": "a", "dimension": ["i2v_subject"], "image_name": f"{text}.jpg" + "x" * 6}
            read_vbench_prompts(self.write(tmp_path, entry))

    @pytest.mark.parametrize("entry", ["a", {}, {"prompt_en": "a"}, {"prompt_en": 1, "dimension": []}])
    def test_an_entry_without_prompt_or_dimension_is_refused(self, tmp_path, entry):
        with pytest.raises(ValueError, match="should have a text `prompt_en`"):
            read_vbench_prompts(self.write(tmp_path, entry))

    def test_dimensions_without_a_prompt_are_named(self, tmp_path):
        with pytest.raises(ValueError, match="no prompt for colour"):
            read_vbench_prompts(self.write(tmp_path, {"prompt_en": "a", "dimension": ["color"]}), ["colour"])
