from vdmini_diffusers.cli.markdown_table import markdown_table


def test_columns_are_all_keys_and_what_lacks_stays_empty():
    rows = [{"name": "a|b", "ms": 2.5}, {"name": "two\nlines", "ratio": 3.0, "ms": 1234.5678}]
    assert markdown_table(rows).splitlines() == [
        "| name | ms | ratio |",
        "| --- | --- | --- |",
        "| a\\|b | 2.5 |  |",
        "| two lines | 1234.568 | 3 |",
    ]
