"""Engines: what keeps tables. Nothing above the table imports one but by its protocol."""
