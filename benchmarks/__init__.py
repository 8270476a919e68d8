"""Ratios against a named peer or the raw driver, in one run on the same data, medians of interleaved rounds."""
