"""What every task is given (`context`), and how its units of work are executed."""
