"""The checks that every system and every rule must pass, for what ships and for everybody's."""
