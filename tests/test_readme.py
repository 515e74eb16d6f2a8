"""The README says what the code does."""

import re
from pathlib import Path

from service.errors import all_codes
from service.http_api.problems import STATUS_OF

README = (Path(__file__).parents[1] / "README.md").read_text()
ROW = re.compile(r"^\| ((?:`[a-z-]+`(?:, )?)+) \| ([0-9]{3}) \| [^|]+ \| (yes|no) \|$", re.MULTILINE)


def test_the_table_of_errors_is_that_of_the_api() -> None:
    told = {
        code: (int(status), retry == "yes")
        for codes, status, retry in ROW.findall(README)
        for code in re.findall("`([a-z-]+)`", codes)
    }
    expected = {
        kind.code.format(blob=blob): (int(status), kind.retryable)
        for kind, status in STATUS_OF.items()
        for blob in ("data", "model")
    }
    assert told == expected
    assert set(told) == set(all_codes())
