"""What the verbs of the command line do, a module for each group of them; cli.py names and registers them."""
