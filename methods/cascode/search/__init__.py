"""Search in a folder of code by what its functions do: `tenfold-search index | query | serve`."""
