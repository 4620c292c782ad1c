"""How problems are run: one definition of every system and rule, on several paths."""
