"""Overlay tables: a Postgres heap with the hot rows over an Iceberg table with the others, read and written as one."""
