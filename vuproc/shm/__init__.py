"""Everything that lives in memory shared between processes."""
