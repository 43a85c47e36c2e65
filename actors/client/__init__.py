"""How a command and a query leave a program, and how the outcome and the answer come back."""
