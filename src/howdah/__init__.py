"""One storage layer for AI agents: key-values, records, tables, vectors, text, blobs and documents behind one URL."""
