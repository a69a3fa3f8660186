"""Pairs of images: the catalogue of their sources, and what these are built from.

catalogue > sources (one file per source) > layouts (public data sets) > banks (prepared subjects, downloads) > phantoms
(painters) > pairs (the batch and the protocol of sources); io (images on disk) lies below banks.
"""
