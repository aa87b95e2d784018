from vdmini_diffusers.data.skipped_videos import SkipLog, summarize


def test_a_line_cut_short_does_no_harm(tmp_path):
    log = SkipLog(tmp_path)
    (tmp_path / "host-1.jsonl").write_text('{"name": "a", "reason": "broken", "detail": ""}\n{"name": "b", "rea')
    assert [video.name for video in log.read()] == ["a"]
    assert summarize([]) == "No video was skipped."
