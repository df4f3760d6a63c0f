"""Charts that draw themselves as SVG, a kind a file: plain data in, shapes out."""
