"""How stores behave as they grow: time and memory of writing, opening, scoring and exporting, against rows."""
