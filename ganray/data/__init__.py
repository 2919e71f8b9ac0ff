"""Images on disk and their way to the device; knows nothing of GANs.

``sources`` reads a data set as it was published, ``shards`` writes it once as HDF5 and maps it,
``order`` says which images make up step k, ``loader`` brings them to the device.

This file imports nothing, so that a conversion worker does not pay for ``torch``.
"""
