"""What a study found: summaries, reports, exports, and the test set's vault."""
