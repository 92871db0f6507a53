"""Load any model, and say what it is made of."""
