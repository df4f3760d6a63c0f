"""The tangent space of a model: linearized models, exact derivatives in it, and its kernel."""
