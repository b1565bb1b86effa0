//! 64 workers with one slot each.
