"""Hidden states: their extraction, their store, and their import from other tools."""
