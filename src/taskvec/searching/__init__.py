"""Black-box search of the numbers of a recipe: CMA-ES, a grid or random points against any score."""
