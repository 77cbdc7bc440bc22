"""What exists, as plain data: tasks, recorded measures, attacks."""
