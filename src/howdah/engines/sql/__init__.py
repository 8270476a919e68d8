"""The SQL engines: SQLite and Postgres, one table for both dialects."""
