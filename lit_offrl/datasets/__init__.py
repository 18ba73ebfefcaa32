"""Files to arrays to batches; knows neither Lightning nor environments.

``catalog`` finds and reads (``load_dataset``), ``schema`` is what is read (``OfflineDataset``),
``views`` and ``sampler`` make batches of it and their order, ``priorities`` an order that training
sets, ``labels`` store what critics say of its rows. Of these only the last four, and
``normalizers``, import torch, so that ``lit-offrl datasets`` answers at once.
"""
