"""Result tables: their schema, the store that writes and reads them, and the checks of a suite."""
