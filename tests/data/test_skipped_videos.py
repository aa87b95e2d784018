import pytest

from vdmini_diffusers.data.skipped_videos import SkipLog, summarize


def test_a_line_cut_short_does_no_harm(tmp_path):
    log = SkipLog(tmp_path)
    (tmp_path / "host-1.jsonl").write_text('{"name": "a", "reason": "broken", "detail": ""}\n{"name": "b", "rea')
    assert [video.name for video in log.read()] == ["a"]
    assert summarize([]) == "No video was skipped."


ODD_LINES = ["nothing", "[]", "{}", '{"name": 7, "reason": "", "detail": ""}', "[" * 100_000, "\udcff"]


@pytest.mark.parametrize("line", ODD_LINES, ids=range(6))
def test_a_malformed_list_is_named(tmp_path, line):
    (tmp_path / "host-1.jsonl").write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError, match=r"host-1\.jsonl is no list of skipped videos"):
        SkipLog(tmp_path).read()
