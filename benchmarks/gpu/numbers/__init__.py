"""Are the numbers right: against the Rust runner, against float64, and the same bits each time."""
