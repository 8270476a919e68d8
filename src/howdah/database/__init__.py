"""Postgres as plain SQL: statements, transactions, streams and bulk copies over connections of its own."""
