"""The tests, and what they share. What stands in these modules says what differs, as in a test."""

import pytest

pytest.register_assert_rewrite("tests.service.delivery", "tests.problems")
