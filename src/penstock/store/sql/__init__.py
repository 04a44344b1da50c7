"""The database: SQLite or PostgreSQL, its tables and their migrations."""
