"""Result tables: their schema, the store that keeps them, and the checks that read them."""
