"""Public data sets on the user's disk: which file of a folder is an image, its labels, mask or key-points."""
