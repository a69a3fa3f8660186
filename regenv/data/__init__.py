"""Where pairs of images come from: files, data sets, phantoms."""
