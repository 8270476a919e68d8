"""Stores: thin, typed views of a table."""
