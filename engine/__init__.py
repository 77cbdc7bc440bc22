"""What every task receives (`context`), and how its units of work are executed."""
