"""What a person or a program reads: rows as JSON, tables and progress bars on a console."""
