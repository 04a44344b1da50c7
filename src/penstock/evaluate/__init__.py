"""How good a model is, in figures that do not depend on how it was trained."""
