"""Images on disk and their way to the device; knows nothing of GANs.

``sources`` reads a data set as it was published, ``convert`` writes it once as HDF5 in the format
that ``shards`` lays down, ``reader`` maps it, ``order`` says which images make up step k, and
``loader`` brings them to the device, where ``augment`` crops and mirrors them. ``faces`` draws a
data set where there is none, ``remote`` brings shards from elsewhere, and ``prepare`` decides which
of all that is still to be done.

This file imports nothing, so that a conversion worker does not pay for ``torch``.
"""
