"""The faults of the original API that its users met, each mended and each with tests of its name.

| # | the original | tests in |
|---|---|---|
| 1 | a side of 448 to 511 pixels, or mixed small sides: a blank picture | repository/test_pipeline.py |
| 2 | both sides below 448 pixels: a shape error | repository/test_pipeline.py, repository/test_parameters.py |
| 3 | a side that is no multiple of 64 beyond 512: a blank strip at the edge | repository/test_pipeline.py |
| 4 | sizes rounded down to a multiple of 8, silently | repository/test_pipeline.py |
| 5 | no bootstrapping, no region: crashes; no steps: divides by zero | repository/test_pipeline.py, repository/test_parameters.py |
| 6 | bootstrapping changes the initial noise of a seed | repository/test_pipeline.py |
| 7 | bootstrapping to the end never harmonises, silently | repository/test_pipeline.py |
| 8 | a long negative prompt raises, a long prompt is cut silently | repository/test_prompts.py |
| 9 | counts that differ: raw tensor errors; a string for a list: read by character | repository/test_parameters.py, gateway/test_original_faults.py |
| 10 | a stroke thinner than 8 pixels vanishes silently | repository/test_pipeline.py |
| 11 | alpha is ignored, pure red counts as empty | gateway/test_original_faults.py |
| 12 | two requests at once share scheduler and random numbers | repository/test_pipeline.py |
| 13 | overlaps average and blur, silently | repository/test_pipeline.py |
| 14 | every failure a 400 with the exception's text; all interfaces; no limits | gateway/test_original_faults.py |
| 15 | SDXL: window and factor hard-coded, a VAE that overflows | repository/test_pipeline.py, export/test_original_faults.py |
| 16 | a mask of other proportions is stretched without a word | gateway/test_original_faults.py |
"""  # noqa: E501 - a table

import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROW = re.compile(r"^\| (\d+) \|.+\| ([^|]+) \|$", re.MULTILINE)
TEST = re.compile(r"^def test_fault_(\d+)_[a-z]\w+\(", re.MULTILINE)
FAULTS = 16


def test_every_fault_has_tests_of_its_name_where_the_table_says() -> None:
    named = {
        (int(number), path.relative_to(FOLDER).as_posix())
        for path in FOLDER.rglob("test_*.py")
        for number in TEST.findall(path.read_text())
    }
    told = {(int(number), file) for number, files in ROW.findall(str(__doc__)) for file in files.split(", ")}
    assert told == named
    assert {number for number, _ in named} == set(range(1, FAULTS + 1))
