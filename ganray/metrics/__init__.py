"""How much of the data a generator covers. Takes arrays, never a trainer."""
