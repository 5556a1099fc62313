"""TransNormer: block-diagonal attention in some layers, normalised linear attention in the others."""
