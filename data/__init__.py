"""The trained weights that come with the package, each with its card; see `minivim.models.checkpoints.shipped`."""
