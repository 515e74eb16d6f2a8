"""The tests, and what they share. What stands in these modules says what differs, as in a test."""
